"""An image set in, the refined set out: read, target, refine, write, batch by batch."""

import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from refine.bigroc import bigroc
from refine.config import RefineConfig
from refine.targets import given_targets
from robust_models.attacks import PGD
from robust_models.checkpoints import load
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.grids import save_rows
from robust_models.images import ImageSet, open_images, to_float, to_u8, write_images
from robust_models.runtime.device import pick_device, place
from robust_models.threat import NORMS


class AtClassifierSize(nn.Module):
    """The classifier behind a differentiable resize, for images of another size."""

    def __init__(self, model: RobustClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        size = (self.model.image_size, self.model.image_size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return self.model(x)


class Outcome(NamedTuple):
    """What refinement did to each image of a batch, [n] on the CPU, measured on the uint8 images before and after."""

    target: Tensor
    confidence_before: Tensor  # probability of the target
    confidence_after: Tensor
    on_target_before: Tensor  # 1.0 where the prediction is the target
    on_target_after: Tensor
    distance: Tensor  # norm of the change, pixels in [0,1]


def refine_set(config: RefineConfig) -> dict[str, Any]:
    """Refines config.input into config.out and gives the summary: N, targets, means of the Outcome, rate."""
    _check_out(config)
    images = open_images(config.input, on_error=config.on_error)
    for problem in images.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    classifier = load(config.ckpt, arch=config.arch, normalize=config.normalize)
    place(classifier, pick_device(config.device), config.precision)
    source = config.targets or ("pseudo" if images.labels is None else "given")
    given = given_targets(images, classifier) if source == "given" else None
    attack = bigroc(config.eps, steps=config.steps, step_size=config.step_size, norm=config.norm)

    started = time.perf_counter()
    outcomes: list[Outcome] = []
    grid = _Grid(len(images), config.grid_images)
    with write_images(config.out, like=images, labels=images.labels, class_names=images.class_names) as add:
        for part, x_u8 in _with_progress(images, config.batch_size):
            x_ref_u8, outcome = refine_batch(classifier, attack, x_u8, None if given is None else given[part])
            add(x_ref_u8)
            outcomes.append(outcome)
            grid.keep(part, x_u8, x_ref_u8)
    wall_s = time.perf_counter() - started

    total = Outcome(*(torch.cat(column) for column in zip(*outcomes, strict=True)))
    if config.grid is not None:
        save_rows(config.grid, grid.rows(), _captions(total, grid.index, classifier.class_names))
    return {
        "out": str(config.out),
        "grid": None if config.grid is None else str(config.grid),
        "n": len(images),
        "skipped": len(images.skipped),
        "checkpoint": config.ckpt,
        "targets": source,
        "norm": config.norm,
        "eps": config.eps,
        "steps": config.steps,
        "step_size": attack.step_size,
        "precision": classifier.precision,
        **{
            name: round(column.double().mean().item(), 4)
            for name, column in total._asdict().items()
            if name != "target"
        },
        "wall_s": round(wall_s, 2),
        "images_per_s": round(len(images) / wall_s, 1),
    }


def refine_batch(
    classifier: RobustClassifier, attack: PGD, x_u8: Tensor, target: Tensor | None
) -> tuple[Tensor, Outcome]:
    """x_u8 [n,3,H,W] -> refined uint8 images on the CPU and what became of them; pseudo-labels where target is None."""
    model = AtClassifierSize(classifier)
    x = to_float(x_u8.to(classifier.mean.device))
    logits_before = _logits(model, x)
    target = logits_before.argmax(1) if target is None else target.to(x.device)
    x_ref = to_float(to_u8(attack(model, x, target)))
    logits_after = _logits(model, x_ref)
    outcome = Outcome(
        target,
        _confidence(logits_before, target),
        _confidence(logits_after, target),
        (logits_before.argmax(1) == target).float(),
        (logits_after.argmax(1) == target).float(),
        NORMS[attack.norm].length(x_ref - x),
    )
    return to_u8(x_ref).cpu(), Outcome(*(column.cpu() for column in outcome))


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def _confidence(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def _check_out(config: RefineConfig) -> None:
    """Before any work: the output may replace nothing unasked and may not lie in or around the input."""
    out, source = config.out.resolve(), config.input.resolve()
    if out == source or source in out.parents or out in source.parents:
        raise UserError(f"out: {config.out} overlaps the input {config.input}; choose a place outside it")
    if out.exists() and not config.overwrite:
        raise UserError(f"out: {config.out} exists; remove it, choose another place, or pass --overwrite")


def _with_progress(images: ImageSet, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
    with tqdm(total=len(images), unit="img", desc="refine") as bar:
        for part, x_u8 in images.batches(batch_size):
            yield part, x_u8
            bar.update(len(x_u8))


class _Grid:
    """Keeps `count` images, spread evenly over the set of n, as they are before and after."""

    def __init__(self, n: int, count: int) -> None:
        self.index = torch.linspace(0, n - 1, min(n, count)).round().long().unique().tolist()
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []

    def keep(self, part: slice, x_u8: Tensor, x_ref_u8: Tensor) -> None:
        for i in self.index:
            if part.start <= i < part.stop:
                self.before.append(x_u8[i - part.start])
                self.after.append(x_ref_u8[i - part.start])

    def rows(self) -> list[tuple[str, Tensor]]:
        return [("before", torch.stack(self.before)), ("refined", torch.stack(self.after))]


def _captions(total: Outcome, index: list[int], class_names: tuple[str, ...]) -> list[str]:
    return [
        f"{class_names[int(total.target[i])]}\n{total.confidence_before[i]:.0%} > {total.confidence_after[i]:.0%}"
        for i in index
    ]
