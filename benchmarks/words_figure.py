"""The picture of docs/words.md: what a small image-text model makes of a few texts.

python -m benchmarks.words_figure --model words.safetensors --out docs/words.png
"""

import argparse
import tempfile
from pathlib import Path

import refine.cli
from robust_models import open_images
from robust_models.grids import Row, save_rows

PROMPTS = (
    "a photo of a red truck",
    "a photo of a blue truck",
    "a photo of a white ship on blue",
    "a photo of a green frog",
    "a photo of a brown horse on green",
    "a photo of a black cat",
)
IMAGES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a file of benchmarks.image_text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eps", default="8")
    parser.add_argument("--step-size", default="0.5")
    parser.add_argument("--steps", default="20")
    parser.add_argument("--views", default="4")
    args = parser.parse_args()
    more = ["--eps", args.eps, "--step-size", args.step_size, "--steps", args.steps, "--views", args.views]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, prompt in enumerate(PROMPTS):
            out = Path(folder, f"{i}.npz")
            words = [
                "--task",
                "generate",
                "--ckpt",
                args.model,
                "--prompt",
                prompt,
                "--num-images",
                IMAGES,
                "--out",
                out,
            ]
            status = refine.cli.main([str(word) for word in [*words, "--overwrite", *more]])
            if status:
                raise SystemExit(status)
            rows.append((prompt.removeprefix("a photo of "), open_images(out).read(0, IMAGES)))
    save_rows(args.out, rows, [""] * IMAGES, columns=IMAGES, note=" ".join(more))


if __name__ == "__main__":
    main()
