"""docs/gallery: a page of pictures of everything that `bigroc refine` does, made by the commands that it shows.

    python -m benchmarks.gallery --out docs/gallery
    python -m benchmarks.gallery --out docs/gallery --only sketch,paint   # the others stay as they are
    python -m benchmarks.gallery --inputs .                               # only the inputs of the page's commands

--data: labelled CIFAR-10 images that took no part in training; the bundled ones are the default. Every picture comes
from one run with the seed on the page. Which images it shows was fixed beforehand (the first of each class), not chosen
by the results.
"""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.drawings import DRAWINGS, draw
from examples import new_task
from refine.cli import main as refine
from refine.synthesis.drawings import open_drawings
from refine.synthesis.tasks.paint import STRENGTH
from robust_models import ImageSet, open_images, to_float, to_u8
from robust_models.errors import UserError
from robust_models.grids import save_rows
from robust_models.runtime.files import PRETRAINED, whole_file, write_json

CKPT = "cifar10-l2-small"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
SAMPLES = PRETRAINED / "vae-cifar10.npz"
DATA = PRETRAINED / "cifar10-test-500.npz"
COUNT = 8  # images in a row
ABOUT = f"""# Gallery

All by one small robust classifier, `{CKPT}` (1.2 M parameters, CIFAR-10, L2 eps 0.5; it comes with the package), on a
CPU in float32. Images are 32 pixels, enlarged with sharp pixels. Inputs are the first test images of their classes, the
first samples of a VAE, and drawings of a few strokes: none was left out for its result. Some of the settings, though,
were chosen by eye, on these very images. Under each image stands its class and, unless said otherwise, the classifier's
confidence in it before > after. That confidence is what the steps raise: it says that they worked, not that the image
is good. eps and steps are in pixels of [0,1].

Made by `python -m benchmarks.gallery --out docs/gallery`. The commands below read files that this one writes, from
images that come with the package:

```
python -m benchmarks.gallery --inputs .
```
"""
LISTED = 500  # images that features are listed by

Rows = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Picture:
    """One section of the page. Commands run in a folder of the inputs; each writes OUT.npz and a manifest."""

    title: str
    text: str
    commands: tuple[str, ...]
    rows: Callable[[Path, Tensor], Rows] | None  # (folder, result [n,3,H,W]) -> what to show; None: the command's own


def u8(path: Path) -> Tensor:
    images = open_images(path)
    return to_u8(to_float(images.read(0, len(images))))


def before_and_after(source: str, before: str, after: str) -> Callable[[Path, Tensor], Rows]:
    return lambda folder, result: [(before, u8(folder / source)), (after, result)]


def sketched(folder: Path, result: Tensor) -> Rows:
    drawings = [open_drawings(folder / f"{name}.png", result.shape[-1]).read(0) for name in DRAWINGS]
    return [("drawing", to_u8(torch.cat(drawings))), ("sketch", result)]


def filled_in(folder: Path, result: Tensor) -> Rows:
    original = u8(folder / "real.npz")
    hole = original.clone()
    hole[..., 8:24, 8:24] = 128
    return [("with a hole", hole), ("inpainted", result), ("original", original)]


def enlarged(folder: Path, result: Tensor) -> Rows:
    small = to_float(u8(folder / "small.npz"))
    nearest = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    bicubic = F.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False)
    return [
        ("8 pixels", to_u8(nearest)),
        ("bicubic", to_u8(bicubic)),
        ("superres", result),
        ("original", u8(folder / "real.npz")),
    ]


def coloured(folder: Path, result: Tensor) -> Rows:
    original = u8(folder / "real.npz")
    grey = new_task.luma(to_float(original)).repeat(1, 3, 1, 1)
    return [("grey", to_u8(grey)), ("coloured", result), ("original", original)]


PICTURES = {
    "refine": Picture(
        "Refine",
        "Samples of a small VAE, and the same samples after a few steps towards their class (BIGRoC).",
        (f"bigroc refine --ckpt {CKPT} --input samples.npz --out out.npz --eps 4",),
        before_and_after("samples.npz", "VAE sample", "refined"),
    ),
    "generate": Picture(
        "Generate",
        "Images of every class from seeds drawn from a mixture of Gaussians at low resolution (above).",
        (f"bigroc refine --task generate --ckpt {CKPT} --num-images 16 --out out.npz --grid generate.png",),
        None,
    ),
    "inpaint": Picture(
        "Inpaint",
        "A hole of 16 pixels filled in, towards the image's class; what was known is the original, bit for bit. The "
        "default eps, 2, invents less and is nearer to the original on average.",
        (
            f"bigroc refine --task inpaint --ckpt {CKPT} --input real.npz --hole 16 "
            "--eps 3 --step-size 0.15 --steps 60 --out out.npz",
        ),
        filled_in,
    ),
    "superres": Picture(
        "Super-resolution",
        "8 pixels enlarged to 32, from bicubic towards the image's class; the detail is what the classifier expects, "
        "not what was. eps is twice the default, for more of it.",
        (
            f"bigroc refine --task superres --ckpt {CKPT} --input small.npz --factor 4 --start-from bicubic "
            "--eps 4 --step-size 0.25 --steps 30 --out out.npz",
        ),
        enlarged,
    ),
    "translate": Picture(
        "Translate",
        "Photographs of one class turned into another.",
        tuple(
            f"bigroc refine --task translate --ckpt {CKPT} --input pairs.npz --out out{i}.npz "
            f"--source-class {source} --target-class {target}"
            for i, (source, target) in enumerate(
                [("cat", "dog"), ("automobile", "truck"), ("horse", "deer"), ("airplane", "ship")]
            )
        ),
        before_and_after("pairs.npz", "photo", "translated"),
    ),
    "sketch": Picture(
        "Sketch",
        "Drawings of a few strokes (`benchmarks/drawings.py`) turned into images of a class.",
        tuple(
            f"bigroc refine --task sketch --ckpt {CKPT} --input {name}.png --out out-{name}.npz --target {name}"
            for name in DRAWINGS
        ),
        sketched,
    ),
    "features": Picture(
        "Features",
        f"Features of the classifier: the images, of {LISTED}, that excite each most, and the class it goes with.",
        (f"bigroc refine --task features --ckpt {CKPT} --input listed.npz --out features.png --top 10 --images 6",),
        None,
    ),
    "paint": Picture(
        "Paint",
        "Feature 229, which goes with ships, raised in the upper half; the lower half is the original, bit for bit. "
        "Under the images: the feature before > after.",
        (
            f"bigroc refine --task paint --ckpt {CKPT} --input real.npz --feature 229 --rectangle 0,0,16,32 "
            "--out out.npz",
        ),
        before_and_after("real.npz", "photo", "painted"),
    ),
    "invert": Picture(
        "Invert",
        "From noise to an image with the latent of a photograph: what the classifier keeps of it. Under the images: "
        "the relative distance of the latents before > after.",
        (f"bigroc refine --task invert --ckpt {CKPT} --input real.npz --out out.npz",),
        before_and_after("real.npz", "wanted latent", "found image"),
    ),
    "colour": Picture(
        "A task of one's own",
        "Grey photographs coloured by `examples/new_task.py`; see [synthesis](../synthesis.md).",
        (f"python examples/new_task.py --ckpt {CKPT} --input real.npz --out out.npz",),
        coloured,
    ),
}


def make_inputs(folder: Path, data: Path) -> None:
    """real.npz (an image of each of 8 classes), small.npz (the same at 8 pixels), pairs, drawings, samples, listed."""
    images = open_images(data)
    if images.labels is None:
        raise UserError(f"data: {data} has no labels; the gallery needs labelled CIFAR-10 images")
    labels = images.labels
    first = {c: np.flatnonzero(labels == c) for c in range(len(CLASSES))}
    real = [first[c][0] for c in range(COUNT)]
    _write(folder / "real.npz", _read(images, real), labels[real])
    small = to_u8(F.avg_pool2d(to_float(_read(images, real)), 4))
    _write(folder / "small.npz", small, labels[real])
    pairs = [i for name in ("cat", "automobile", "horse", "airplane") for i in first[CLASSES.index(name)][:2]]
    _write(folder / "pairs.npz", _read(images, pairs), labels[pairs])
    _write(folder / "listed.npz", _read(images, range(min(LISTED, len(images)))), labels[:LISTED])
    samples = open_images(SAMPLES)
    assert samples.labels is not None
    _write(folder / "samples.npz", samples.read(0, COUNT), samples.labels[:COUNT])
    for name in DRAWINGS:
        draw(name).save(folder / f"{name}.png")


def _read(images: ImageSet, rows: Iterable[int]) -> Tensor:
    return to_u8(to_float(torch.cat([images.read(i, i + 1) for i in rows])))


def _write(path: Path, x_u8: Tensor, labels: np.ndarray) -> None:
    np.savez(path, arr_0=x_u8.permute(0, 2, 3, 1).numpy(), arr_1=labels)


def make(name: str, folder: Path, out: Path) -> dict[str, Any]:
    """Runs the commands of a picture in `folder`, saves it in `out`, and gives what the page says about it."""
    picture = PICTURES[name]
    with contextlib.chdir(folder):
        summaries = [_run(command) for command in picture.commands]
        if picture.rows is not None:
            result = torch.cat([u8(Path(summary["out"])) for summary in summaries])
            moved = [json.loads(line) for summary in summaries for line in Path(summary["manifest"]).open()]
            save_rows(Path(f"{name}.png"), picture.rows(folder, result), [_caption(name, row) for row in moved])
    with whole_file(out / f"{name}.png") as partial:
        shutil.copyfile(folder / f"{name}.png", partial)
    return {"commands": picture.commands, "facts": _facts(name, summaries)}


def _run(command: str) -> dict[str, Any]:
    """The summary of a command as it stands on the page."""
    program, *words = shlex.split(command)
    main = refine if program == "bigroc" else new_task.main
    arguments = words[1:]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([*arguments, "--json"])
    if status:
        raise SystemExit(status)
    return json.loads(printed.getvalue())


def _measured(name: str) -> tuple[str, float]:
    """The quantity under a picture's images, and the factor from their objective to it (0: it is not the objective)."""
    if name == "invert":
        return "relative distance of the latents", 1.0
    if name == "paint":  # nothing outside the mask has changed: what remains of the objective is the feature
        return "the feature", -1 / STRENGTH
    return "confidence in the class", 0.0


def _before_after(name: str, row: dict[str, Any]) -> tuple[float, float]:
    factor = _measured(name)[1]
    if factor:
        return factor * row["objective_before"], factor * row["objective_after"]
    return row["confidence_before"], row["confidence_after"]


def _caption(name: str, row: dict[str, Any]) -> str:
    before, after = _before_after(name, row)
    numbers = f"{before:.2f} > {after:.2f}" if _measured(name)[1] else f"{before:.0%} > {after:.0%}"
    return f"{row['class']}\n{numbers}"


def _facts(name: str, summaries: list[dict[str, Any]]) -> str:
    """Ball, steps, seed, N and means of the runs, which share their settings."""
    first = summaries[0]
    n = sum(summary["n"] for summary in summaries)
    if "eps" not in first:
        return f"N {n}, classes {first['classes']}."
    pairs = [(summary["n"], *_before_after(name, summary), summary["distance"]) for summary in summaries]
    before, after, distance = (sum(pair[0] * pair[k] for pair in pairs) / n for k in (1, 2, 3))
    return (
        f"{first['norm'].upper()} ball of eps {first['eps']:g}, {first['steps']} steps of {first['step_size']:.3g}, "
        f"seed {first.get('seed', 0)}, N {n}. Means: {_measured(name)[0]} {before:.3f} before, {after:.3f} after; "
        f"distance moved {distance:.2f}."
    )


def page(made: dict[str, Any]) -> str:
    """The text of README.md, with a section for each picture there is."""
    sections = [ABOUT]
    for name, picture in PICTURES.items():
        if name in made:
            commands = "\n".join(made[name]["commands"])
            sections.append(
                f"## {picture.title}\n\n{picture.text}\n\n![{picture.title}]({name}.png)\n\n```\n{commands}\n```\n\n"
                f"{made[name]['facts']}\n"
            )
    return "\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help="folder of the page")
    place.add_argument("--inputs", type=Path, metavar="DIR", help="only write what the page's commands read, to DIR")
    parser.add_argument("--only", default=",".join(PICTURES), help="names of pictures, with commas")
    args = parser.parse_args()
    if args.inputs:
        make_inputs(args.inputs, args.data)
        return

    names = args.only.split(",")
    if unknown := [name for name in names if name not in PICTURES]:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(PICTURES)}")
    numbers = args.out / "gallery.json"
    made = json.loads(numbers.read_text()) if numbers.exists() else {}
    out = args.out.resolve()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(Path(folder), args.data)
            made[name] = make(name, Path(folder), out)
        made = {known: made[known] for known in PICTURES if known in made}
        write_json(numbers, made)
        with whole_file(args.out / "README.md") as partial:
            partial.write_text(page(made))
        print(f"{name}: {made[name]['facts']}", flush=True)


if __name__ == "__main__":
    main()
