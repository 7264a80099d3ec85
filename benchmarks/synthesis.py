"""What the synthesis tasks reach on CIFAR-10 with the embedded classifiers, beside simple ways to do the same.

    python -m benchmarks.synthesis generate inpaint superres translate sketch [--ckpt cifar10-l2-small] [--n 500]
                                   [--n-generated 1000] [--json FILE]

Every row runs the command itself and judges the images it stored with cifar10-standard-small, which took no part:
agreement is the share that it sees as the class wanted. generate: --n-generated images, balanced, from a mixture of
Gaussians and from one Gaussian per class; the Frechet distance is between the judge's 128 features of these and of the
50,000 train images. inpaint: a centred hole of 16x16 in the first N test images; PSNR inside it (wants OpenCV: pip
install opencv-python-headless). superres: from 8x8 block averages to 32x32. translate: the test images of a class into
another one; all of them together are compared with the real ones of the classes wanted, in 1,280 features of ImageNet
(KID). sketch: the drawings of benchmarks/drawings.py into what they show. "given" rows give the task each image's true
class, "pseudo" rows leave it to be guessed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.drawings import DRAWINGS, draw
from refine.synthesis.drawings import open_drawings
from refine.synthesis.masks import centred
from refine.synthesis.run import synthesize_set
from refine.synthesis.tasks import generate, inpaint, sketch, superres, translate
from refine.synthesis.tasks.inpaint import filled_smoothly, filled_with_mean
from refine.synthesis.tasks.superres import enlarge
from robust_models import open_images, to_float, to_u8
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.features import FeatureExtractor, open_features
from robust_models.images import write_npz
from robust_models.metrics import FrechetStatistics, frechet_distance
from robust_models.metrics.kernel_resampled import KernelReference, KernelResampler
from robust_models.metrics.stored import read_statistics
from robust_models.runtime.files import PRETRAINED
from robust_models.runtime.version import environment

JUDGE = "cifar10-standard-small"
PAIRS = ("cat", "dog"), ("dog", "cat"), ("horse", "deer"), ("automobile", "truck"), ("airplane", "ship")
HOLE, FACTOR = 16, 4
Row = dict[str, Any]


class Judge:
    """The classifier that took no part."""

    def __init__(self) -> None:
        self.features = open_features(f"classifier:{JUDGE}", device=torch.device("cpu"))
        self.real = read_statistics(PRETRAINED / "cifar10-train-statistics.npz")

    def see(self, x_u8: Tensor) -> Tensor:
        """Features [N,128]."""
        return torch.cat([self.features(part) for part in x_u8.split(100)])

    def agreement(self, x_u8: Tensor, y: Tensor) -> float:
        return _percent(self.features.logits(self.see(x_u8)).argmax(1) == y)

    def frechet(self, x_u8: Tensor) -> float:
        statistics = FrechetStatistics(128)
        statistics.update(self.see(x_u8))
        return round(frechet_distance(statistics, self.real), 3)


def psnr(x_u8: Tensor, real_u8: Tensor, mask: Tensor | None = None) -> float:
    """Mean over the images of the peak signal-to-noise ratio, dB; inside the mask [1,1,H,W] where one is given."""
    error = (to_float(x_u8) - to_float(real_u8)).square()
    weights = torch.ones_like(error) if mask is None else mask.expand_as(error)
    mse = (error * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
    return round(float((-10 * mse.clamp_min(1e-10).log10()).mean()), 2)


def measure_generate(args: argparse.Namespace, judge: Judge, folder: Path) -> Iterator[Row]:
    for name, mixture in (("mixture", True), ("one Gaussian", False)):
        config = generate.GenerateConfig(
            ckpt=args.ckpt, out=folder / "generated.npz", num_images=args.n_generated, mixture=mixture, seed=args.seed,
            seeds=args.seeds, steps=args.steps, eps=args.eps, step_size=args.step_size, overwrite=True,
            grid=args.grids and args.grids / f"generate-{name.replace(' ', '-')}.png",
        )  # fmt: skip
        x, y, facts = _made(generate.TASK, config)
        yield {
            "task": "generate",
            "way": name,
            **facts,
            "agreement": judge.agreement(x, y),
            "frechet": judge.frechet(x),
        }


def measure_inpaint(args: argparse.Namespace, judge: Judge, folder: Path) -> Iterator[Row]:
    import cv2  # of no other use here

    real, y = _test_images(args)
    write_npz(folder / "real.npz", real, y.numpy())
    mask = centred(HOLE, (32, 32))(torch.zeros(1, dtype=torch.int64))
    blank = filled_with_mean(to_float(real), mask)
    cv_mask = (mask[0, 0].numpy() * 255).astype(np.uint8)
    telea = [
        cv2.inpaint(image, cv_mask, 3, cv2.INPAINT_TELEA) for image in real.permute(0, 2, 3, 1).contiguous().numpy()
    ]
    plain = {
        "original": real,
        "mean fill": to_u8(blank),
        "smooth fill": to_u8(filled_smoothly(to_float(real), mask.expand(len(real), -1, -1, -1))),
        "Telea": torch.from_numpy(np.stack(telea)).permute(0, 3, 1, 2),
    }
    for name, x in plain.items():
        yield {
            "task": "inpaint",
            "way": name,
            "n": len(x),
            "agreement": judge.agreement(x, y),
            "psnr": psnr(x, real, mask),
        }
    for targets in ("given", "pseudo"):
        config = inpaint.InpaintConfig(
            ckpt=args.ckpt, input=folder / "real.npz", out=folder / "filled.npz", hole=HOLE, targets=targets,
            fill=args.fill, seed=args.seed, steps=args.steps, eps=args.eps, step_size=args.step_size, overwrite=True,
            grid=args.grids and args.grids / f"inpaint-{targets}.png",
        )  # fmt: skip
        x, _, facts = _made(inpaint.TASK, config)
        outside = (mask == 0).expand_as(x)
        row = {"task": "inpaint", "way": f"{targets}, {args.fill} fill", **facts, "agreement": judge.agreement(x, y)}
        yield {**row, "psnr": psnr(x, real, mask), "known_pixels_equal": bool((x[outside] == real[outside]).all())}


def measure_superres(args: argparse.Namespace, judge: Judge, folder: Path) -> Iterator[Row]:
    real, y = _test_images(args)
    small = to_u8(torch.nn.functional.avg_pool2d(to_float(real), FACTOR))
    write_npz(folder / "small.npz", small, y.numpy())
    for name in ("nearest", "bicubic"):
        x = to_u8(enlarge(to_float(small), FACTOR, name))
        yield {"task": "superres", "way": name, "n": len(x), "agreement": judge.agreement(x, y), "psnr": psnr(x, real)}
    for targets in ("given", "pseudo"):
        config = superres.SuperresConfig(
            ckpt=args.ckpt, input=folder / "small.npz", out=folder / "large.npz", factor=FACTOR, targets=targets,
            start_from=args.start, seed=args.seed, steps=args.steps, eps=args.eps, step_size=args.step_size,
            overwrite=True, grid=args.grids and args.grids / f"superres-{targets}.png",
        )  # fmt: skip
        x, _, facts = _made(superres.TASK, config)
        row = {"task": "superres", "way": f"{targets}, {args.start} start", **facts}
        yield {**row, "agreement": judge.agreement(x, y), "psnr": psnr(x, real)}


def measure_translate(args: argparse.Namespace, judge: Judge, folder: Path) -> Iterator[Row]:
    real, y = _test_images(args)
    write_npz(folder / "real.npz", real, y.numpy())
    made = []
    for source, target in PAIRS:
        config = translate.TranslateConfig(
            ckpt=args.ckpt, input=folder / "real.npz", out=folder / "translated.npz", source_class=source,
            target_class=target, seed=args.seed, steps=args.steps, eps=args.eps, step_size=args.step_size,
            overwrite=True, grid=args.grids and args.grids / f"translate-{source}-{target}.png",
        )  # fmt: skip
        x, wanted, facts = _made(translate.TASK, config)
        made.append(x)
        before = judge.agreement(real[y == CIFAR10_CLASSES.index(source)], wanted)
        row = {"task": "translate", "way": f"{source} to {target}", **facts, "before": before}
        yield {**row, "agreement": judge.agreement(x, wanted)}
    of_class = {name: real[y == i] for i, name in enumerate(CIFAR10_CLASSES)}
    sources, targets = (torch.cat([of_class[name] for name in names]) for names in zip(*PAIRS, strict=True))
    space = open_features("efficientnet-lite0-128")
    reference = KernelReference(_seen(space, targets))
    for way, x in (("all, as they came", sources), ("all, translated", torch.cat(made))):
        kid = KernelResampler(_seen(space, x), reference).distance(np.ones(len(x), dtype=np.int64))
        yield {"task": "translate", "way": way, "n": len(x), "kid": round(kid, 4)}


def _seen(space: FeatureExtractor, x_u8: Tensor) -> Tensor:
    return torch.cat([space(part) for part in x_u8.split(100)]).cpu()


def measure_sketch(args: argparse.Namespace, judge: Judge, folder: Path) -> Iterator[Row]:
    for name in DRAWINGS:
        draw(name).save(folder / f"{name}.png")
        config = sketch.SketchConfig(
            ckpt=args.ckpt, input=folder / f"{name}.png", out=folder / "sketch.npz", target=name, seed=args.seed,
            steps=args.steps, eps=args.eps, step_size=args.step_size, overwrite=True,
        )  # fmt: skip
        x, y, facts = _made(sketch.TASK, config)
        before = judge.agreement(to_u8(open_drawings(folder / f"{name}.png", 32).read(0)), y)
        yield {"task": "sketch", "way": name, **facts, "before": before, "agreement": judge.agreement(x, y)}


def _made(task: Any, config: Any) -> tuple[Tensor, Tensor, Row]:
    """The stored images uint8 [N,3,H,W], their targets [N], and the facts of the run."""
    started = time.perf_counter()
    summary = synthesize_set(task, config)
    out = open_images(config.out)
    assert out.labels is not None
    facts = {name: summary[name] for name in ("n", "eps", "step_size", "steps", "seed", "confidence_after", "distance")}
    facts["wall_s"] = round(time.perf_counter() - started, 1)
    return out.read(0, len(out)), torch.from_numpy(out.labels), facts


def _test_images(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    images = open_images(args.test)
    assert images.labels is not None
    n = min(args.n, len(images))
    return images.read(0, n), torch.from_numpy(images.labels[:n])


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.float().mean()), 2)


def _table(row: Row) -> str:
    shown = (
        "n",
        "eps",
        "step_size",
        "steps",
        "before",
        "agreement",
        "psnr",
        "frechet",
        "kid",
        "known_pixels_equal",
        "wall_s",
    )
    return f"{row['task']:9} {row['way']:24}" + "".join(f" {name} {row[name]}" for name in shown if name in row)


MEASURES = {
    "generate": measure_generate,
    "inpaint": measure_inpaint,
    "superres": measure_superres,
    "translate": measure_translate,
    "sketch": measure_sketch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=[], help=f"some of {', '.join(MEASURES)}; none: all")
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--n", type=int, default=500, help="test images for inpaint, superres and translate")
    parser.add_argument("--n-generated", type=int, default=1000)
    parser.add_argument("--test", type=Path, default=Path("data/cifar10_test_exact.npz"))
    parser.add_argument("--seeds", type=Path, help="another file of seeds than the embedded one")
    parser.add_argument("--start", choices=("nearest", "bicubic"), default="nearest", help="of superres")
    parser.add_argument("--fill", choices=("mean", "smooth"), default="smooth", help="of inpaint")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (("--eps", float), ("--step-size", float), ("--steps", int)):
        parser.add_argument(name, type=kind, help="instead of the tasks' defaults")
    parser.add_argument("--grids", type=Path, help="folder for pictures")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    args = parser.parse_args()
    judge = Judge()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in args.tasks or MEASURES:
            for row in MEASURES[task](args, judge, Path(folder)):
                rows.append(row)
                print(_table(row), flush=True)
    report = json.dumps({"rows": rows, "command": sys.argv[1:], "environment": environment()})
    if args.json:
        args.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
