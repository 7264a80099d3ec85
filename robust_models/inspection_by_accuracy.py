"""Chooses the normaliser, padding and activation that a file does not state by the accuracy on labelled images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robust_models.architectures import ACTIVATIONS
from robust_models.classifier import NORMALIZERS, Description, RobustClassifier, check_finite
from robust_models.images import to_float

BATCH = 250
ASSUMED = "as assumed"  # a candidate that has no name of its own
Z_SCORE = 3.3  # of the sign test; one false alarm in a thousand

Field = Literal["normalizer", "arch", "activation"]
_USUAL = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}  # normalisers, by the number of classes
_KEYWORDS: dict[Field, str] = {"normalizer": "normalize", "arch": "arch", "activation": "activation"}


@dataclass(frozen=True)
class Comparison:
    """How each candidate for one field does on the same labelled images."""

    field: Field
    correct: Mapping[str, Tensor]  # candidate -> bool [N]
    assumed: str  # the candidate that was taken before any image was seen
    usual: str | None = None  # the candidate of most classifiers with as many classes

    @property
    def accuracies(self) -> dict[str, float]:
        """Shares of the images, by candidate."""
        return {name: right.float().mean().item() for name, right in self.correct.items()}

    @property
    def best(self) -> str:
        """The candidate with the most images right; the assumed one where it has as many."""
        return max(self.correct, key=lambda name: (int(self.correct[name].sum()), name == self.assumed))

    @property
    def ties(self) -> list[str]:
        """The others whose difference from the best may be chance."""
        best = self.correct[self.best]
        return [name for name, right in self.correct.items() if name != self.best and not is_better(best, right)]

    @property
    def chosen(self) -> str:
        """The assumed candidate, or else the usual one, unless it is significantly worse than the best; then that."""
        return next((name for name in (self.assumed, self.usual) if name in self.ties), self.best)

    @property
    def is_decisive(self) -> bool:
        """The best differs from every other candidate by more than chance."""
        return not self.ties


def is_better(right: Tensor, other: Tensor) -> bool:
    """Whether more images are right, by a paired sign test: both are bool [N] of the same images."""
    wins, losses = int((right & ~other).sum()), int((other & ~right).sum())
    return wins - losses > Z_SCORE * max(wins + losses, 1) ** 0.5


def choose_by_accuracy(model: RobustClassifier, x_u8: Tensor, y: Tensor) -> tuple[RobustClassifier, list[Comparison]]:
    """The model with the candidates that classify x_u8 [N,3,H,W] as y [N], and how all candidates did.

    Only what was assumed is tried: the usual normalisers, architectures with the same tensors, activations. A candidate
    that is significantly worse than another (paired sign test) is never taken; among equals the assumed one stays, or
    the normaliser comes that is usual for so many classes.
    """
    comparisons: list[Comparison] = []
    for field in _KEYWORDS:
        candidates = _candidates(model.description, field)
        if len(candidates) > 1:
            model, comparison = _compare(model, field, candidates, x_u8, y)
            comparisons.append(comparison)
    return model, comparisons


def _candidates(description: Description, field: Field) -> dict[str, Description]:
    """Descriptions that differ in the field, by name; none where the file or the person states it."""
    if _KEYWORDS[field] not in description.assumptions:
        return {}
    if field == "normalizer":
        return {name: replace(description, normalizer=value) for name, value in NORMALIZERS.items()}
    if field == "activation":
        return {name: replace(description, activation=name) for name in ACTIVATIONS}
    also: Iterable[str] = description.recipe["source"].get("also_fits", [])
    names = [name for name in (description.arch, *also) if ":" not in name]
    return {name: replace(description, arch=name) for name in names}


def _compare(
    model: RobustClassifier, field: Field, candidates: Mapping[str, Description], x_u8: Tensor, y: Tensor
) -> tuple[RobustClassifier, Comparison]:
    """The model with the chosen candidate, and the comparison."""
    assumed = next((name for name, description in candidates.items() if description == model.description), ASSUMED)
    models = {name: _as_described(model, description) for name, description in candidates.items()}
    models[assumed] = model
    correct = {name: correct_mask(each, x_u8, y) for name, each in models.items()}
    usual = _USUAL.get(len(model.class_names)) if field == "normalizer" else None
    comparison = Comparison(field, correct, assumed, usual)
    chosen = models[comparison.chosen]
    if len(comparison.ties) == len(correct) - 1:  # nothing is excluded: it remains an assumption
        return model, comparison
    shares = ", ".join(f"{name} {share:.1%}" for name, share in comparison.accuracies.items())
    tied = f"; {', '.join(comparison.ties)} no worse than chance" if comparison.ties else ""
    text = f"{comparison.chosen}, by accuracy on {len(y)} labelled images ({shares}{tied})"
    description = chosen.description.known([_KEYWORDS[field]])
    source = {**description.recipe["source"], field: text}
    description = replace(description, recipe={**description.recipe, "source": source})
    return RobustClassifier(chosen.network, description).eval(), comparison


def _as_described(model: RobustClassifier, description: Description) -> RobustClassifier:
    """The same tensors in the network that `description` describes."""
    if (description.arch, description.activation) == (model.description.arch, model.description.activation):
        return RobustClassifier(model.network, description).to(model.device).eval()
    other = RobustClassifier.from_description(description)
    other.network.load_state_dict(model.network.state_dict())
    return other.to(model.device).eval()


@torch.no_grad()
def correct_mask(model: RobustClassifier, x_u8: Tensor, y: Tensor) -> Tensor:
    """bool [N]: the images x_u8 [N,3,H,W] that the model puts in their class y [N]. UserError where logits are NaN."""
    parts = zip(x_u8.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([_logits(model, x).argmax(1).cpu() == labels for x, labels in parts])


def _logits(model: RobustClassifier, x_u8: Tensor) -> Tensor:
    return check_finite(model(to_float(x_u8.to(model.device))), f"logits of {model.description.arch}")


def summary(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """The comparisons, ready for JSON."""
    return [
        {"field": c.field, "accuracy": c.accuracies, "best": c.best, "chosen": c.chosen, "ties": c.ties}
        for c in comparisons
    ]
