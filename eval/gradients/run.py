"""The `gradients` measurement: from a classifier and labelled images to the two scores, and their words."""

import sys
import time
from dataclasses import asdict
from typing import Any

from eval.gradients.alignment import GradientAlignment, gradient_alignment
from eval.gradients.config import GradientsConfig
from robust_models.checkpoints.flags import load_classifier
from robust_models.runtime.command import Summary
from robust_models.runtime.device import pick_device, place

# Share on the manifold over a random direction's, of the embedded classifiers at the 500 bundled test images: 1.0 and
# 1.4 without attack in training, 7.5 to 13.2 with (1.1, 1.6, 8.1 to 13.8 against the 50,000 train images).
UNLIKE_ROBUST, LIKE_ROBUST = 3.0, 6.0


def run_gradients(config: GradientsConfig) -> dict[str, Any]:
    """Both scores of gradient_alignment, ready for JSON. UserError for bad input."""
    started = time.perf_counter()
    model, checkpoint = load_classifier(config.ckpt, config)
    found = gradient_alignment(
        place(model, pick_device(config.device), "fp32"),
        config.data,
        config.reference,
        limit=config.limit,
        sigma=config.sigma,
        neighbours=config.neighbours,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return {
        "n": found.n,
        "n_reference": found.n_reference,
        "alignment": found.alignment.value,
        "alignment_interval": list(found.alignment.interval),
        "on_manifold": found.on_manifold.value,
        "on_manifold_interval": list(found.on_manifold.interval),
        "on_manifold_by_chance": found.by_chance,
        "lift": found.lift,
        "reading": read(found),
        "neighbours": found.neighbours,
        "sigma": found.sigma,
        "seed": config.seed,
        "checkpoint": asdict(checkpoint),
        "data": config.data,
        "reference": config.reference,
        "warnings": list(found.warnings),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def read(found: GradientAlignment) -> str:
    """What the scores say of the classifier as a refiner, beside those of the embedded ones."""
    times = f"{found.lift:.1f} times as much along the data as a random direction"
    if found.lift < UNLIKE_ROBUST:
        return f"gradients lie {times}, as those of classifiers trained without attack do: a poor refiner"
    if found.lift < LIKE_ROBUST:
        return (
            f"gradients lie {times}: between classifiers trained without attack (1.0 to 1.6) and robust ones (over 7)"
        )
    return f"gradients lie {times}, as those of adversarially trained classifiers do (7 to 14): fit to refine"


def format_gradients(summary: Summary) -> str:
    """The scores with their intervals, what they are of, and how to read them."""

    def line(name: str, key: str, note: str) -> str:
        low, high = summary[f"{key}_interval"]
        return f"{name} {summary[key]:.4f} (95 %: {low:.4f} to {high:.4f}; {note})"

    chance = f"a random direction {summary['on_manifold_by_chance']:.4f}"
    return "\n".join(
        [
            line("alignment with the data's score", "alignment", "a random direction 0, the Bayes classifier 1"),
            line("gradient energy on the manifold", "on_manifold", f"{chance}, {summary['neighbours']} neighbours"),
            summary["reading"],
            f"N = {summary['n']} against {summary['n_reference']} reference images; noise {summary['sigma']:g}, "
            f"seed {summary['seed']}; {summary['wall_s']:.1f} s",
            *(f"warning: {warning}" for warning in summary["warnings"]),
        ]
    )
