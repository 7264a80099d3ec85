"""The `certify` measurement: certificates image by image, kept as they come, and what they say together."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.certify.config import CertifyConfig
from eval.certify.journal import Journal
from eval.certify.smoothed_votes import ABSTAIN, Certificate, Draw, certify, greatest_radius, radius_of
from eval.robust.stages import binomial_interval
from robust_models.attacks import frozen_eval
from robust_models.checkpoints.flags import load_classifier
from robust_models.classifier import RobustClassifier
from robust_models.datasets import open_dataset
from robust_models.errors import UserError, about_field
from robust_models.folding import folded
from robust_models.images import to_float
from robust_models.labels import fit_labels
from robust_models.runtime.command import Summary
from robust_models.runtime.device import decide_precision, exact_fp32, place
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.files import check_place, exclusive, whole_file
from robust_models.runtime.seeds import EVALUATION, generator

MADE_BY = "bigroc eval certify"
PLOTS = {".png": "Software", ".svg": "Creator", ".pdf": "Creator"}  # and where each says who made it


def run_certify(config: CertifyConfig) -> dict[str, Any] | None:
    """Certified accuracy by radius, ready for JSON; None on ranks that only helped the first one.

    With a state nothing is done twice, whatever the number of ranks. UserError for bad input.
    """
    check_plot(config.plot)
    with join() as ranks, _state_held(config.state if ranks.is_first else None):
        return _certified(config, ranks)


def _state_held(state: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if state is None else exclusive(state, "state")


def _certified(config: CertifyConfig, ranks: Ranks) -> dict[str, Any] | None:
    started = time.perf_counter()
    model, checkpoint = load_classifier(config.ckpt, config)
    sigma = config.sigma or trained_sigma(model)
    data = open_dataset(config.data, "test", limit=config.limit).in_memory()
    if data.image_size != model.image_size:
        raise UserError(
            f"data: {config.data} has images of {data.image_size} px, the classifier takes {model.image_size} px"
        )
    labels = fit_labels(data.y.numpy(), data.class_names, model.class_names, source=config.data)
    device = ranks.device(config.device)
    precision = decide_precision(config.precision, device, "measurement")
    settings = {
        "checkpoint": checkpoint.sha256,
        **{name: getattr(config, name) for name in ("n0", "n", "alpha", "seed")},
        "sigma": sigma,
        "device": device.type,
        "precision": precision.precision,
    }
    greatest = greatest_radius(config.n, sigma, config.alpha)
    warnings = warned(config, model, sigma, greatest)
    if ranks.is_first:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    images = range(0, len(labels), config.every)
    seen = place(folded(model), device, precision.precision)
    with Journal(config.state if ranks.is_first else None, settings, data.x_u8) as journal, exact_fp32():
        found = ranks.share(journal.found)
        _certify_all(seen, data.x_u8, [k for k in images if k not in found], sigma, config, found, journal, ranks)
    if not ranks.is_first:
        return None
    radii = np.array([found[k].radius if found[k].guess == labels[k] else -1.0 for k in images])
    if config.plot is not None:
        draw_curve(config.plot, radii, f"{config.ckpt}\nsigma {sigma:g}, N = {config.n:,}, alpha {config.alpha:g}")
    return {
        "images": len(images),
        "certified": [row(radii, r) for r in config.radii],
        "average_certified_radius": float(radii.clip(min=0).mean()),
        "abstained": float(np.mean([found[k].guess == ABSTAIN for k in images])),
        "greatest_radius": greatest,
        "sigma": sigma,
        **{name: getattr(config, name) for name in ("n0", "n", "alpha", "seed", "every", "batch_size")},
        "checkpoint": asdict(checkpoint),
        "data": config.data,
        **precision.summary(),
        "plot": None if config.plot is None else str(config.plot),
        "warnings": warnings,
        "wall_s": round(time.perf_counter() - started, 2),
    }


def _certify_all(
    model: RobustClassifier,
    x_u8: Tensor,
    left: list[int],
    sigma: float,
    config: CertifyConfig,
    found: dict[int, Certificate],
    journal: Journal,
    ranks: Ranks,
) -> None:
    """Certificates of the images that are left into `found`, as many at a time as there are ranks, one each."""
    with (
        frozen_eval(model),
        tqdm(total=len(left), unit="img", desc="certify", disable=not (ranks.is_first and left)) as bar,
    ):
        for at in range(0, len(left), ranks.world):
            together = left[at : at + ranks.world]
            numbers = torch.zeros(len(together), 2, dtype=torch.int64)
            if ranks.rank < len(together):
                k = together[ranks.rank]
                x = to_float(x_u8[k]).to(model.device)
                own = certify(
                    model,
                    x,
                    sigma,
                    noise_like(x, generator(x.device, config.seed, EVALUATION, k)),
                    n0=config.n0,
                    n=config.n,
                    alpha=config.alpha,
                    batch_size=config.batch_size,
                )
                numbers[ranks.rank] = torch.tensor([own.guess, own.votes])
            for k, (guess, votes) in zip(together, ranks.sum(numbers).tolist(), strict=True):
                found[k] = Certificate(guess, votes, radius_of(votes, config.n, sigma, config.alpha))
                journal.add(k, found[k])
            bar.update(len(together))


def noise_like(x: Tensor, draws: torch.Generator) -> Draw:
    """Image by image, so that it does not matter how many are asked for at once."""
    return lambda n: torch.stack([torch.randn(x.shape, generator=draws, device=x.device) for _ in range(n)])


def trained_sigma(model: RobustClassifier) -> float:
    """The noise that the classifier was trained with. UserError where its file names none."""
    sigma = model.description.recipe.get("smoothing", {}).get("sigma", 0)
    if not sigma:
        raise UserError(
            "sigma: the classifier's file names no noise that it was trained with; give --sigma (0.25 is usual for L2 "
            "0.5), and expect little of a classifier that never saw noise"
        )
    return float(sigma)


def warned(config: CertifyConfig, model: RobustClassifier, sigma: float, greatest: float) -> list[str]:
    """What to know before quoting the numbers."""
    found = []
    trained = model.description.recipe.get("smoothing", {}).get("sigma", 0)
    if trained and trained != sigma:
        found.append(f"sigma: {sigma:g}, but the classifier was trained with noise of {trained:g}")
    if beyond := [r for r in config.radii if r >= greatest]:
        found.append(
            f"n: {config.n:,} samples certify radii below {greatest:.3f} at most; 0 % at {beyond[0]:g} says nothing of "
            "the classifier"
        )
    return found


def row(radii: np.ndarray, r: float) -> dict[str, Any]:
    """Certified accuracy at r: the share that is right and certified at least so far (-1 where it is not right)."""
    certified = int((radii >= r).sum()) if r > 0 else int((radii > 0).sum())
    return {
        "radius": r,
        "accuracy": certified / len(radii),
        "interval": list(binomial_interval(certified, len(radii))),
    }


def check_plot(path: Path | None) -> None:
    """UserError, before any work, for a plot of a kind that is not drawn, or where something else stands."""
    if path is None:
        return
    if path.suffix.lower() not in PLOTS:
        raise UserError(f"plot: {path} ends in none of {', '.join(PLOTS)}")
    if path.exists() and not (path.is_file() and MADE_BY.encode() in path.read_bytes()):
        raise UserError(f"plot: {path} is no plot that this program made; choose another name")
    with about_field("plot"):
        check_place(path)


def draw_curve(path: Path, radii: np.ndarray, title: str) -> None:
    """Certified accuracy against the radius, a step at each image's."""
    from matplotlib.figure import Figure

    steps = np.sort(radii[radii > 0])
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    left = (len(steps) - np.arange(len(steps) + 1)) / len(radii)
    axes.step([0, *steps], left, where="post")
    axes.set(xlabel="L2 radius, pixels in [0,1]", ylabel="certified accuracy", ylim=(0, 1.02))
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.3)
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), metadata={PLOTS[path.suffix.lower()]: MADE_BY})


def format_certify(summary: Summary) -> str:
    """A line for each radius, then what it is of."""
    lines = [
        f"radius {row['radius']:<5g} certified accuracy {row['accuracy']:.2%} "
        f"(95 %: {row['interval'][0]:.2%} to {row['interval'][1]:.2%})"
        for row in summary["certified"]
    ]
    return "\n".join(
        [
            *lines,
            f"average certified radius {summary['average_certified_radius']:.4f}; abstained {summary['abstained']:.2%}",
            f"{summary['images']} images; sigma {summary['sigma']:g}, n0 {summary['n0']}, N = {summary['n']:,}, alpha "
            f"{summary['alpha']:g}, seed {summary['seed']}, {summary['precision']}; {summary['wall_s']:.1f} s",
        ]
    )
