"""What leaves no trace in a file - normaliser, padding, activation - told apart by the accuracy on labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robust_models.architectures import ACTIVATIONS
from robust_models.checkpoints.foreign import ASSUMED_RELU, NO_NORMALIZER, USUAL
from robust_models.classifier import NORMALIZERS, Description, RobustClassifier
from robust_models.images import to_float

BATCH = 250
ASSUMED = "as assumed"  # a reading that has no name of its own
Z_SCORE = 3.3  # of the sign test; one false alarm in a thousand


@dataclass(frozen=True)
class Telling:
    """How each reading of a file does on the same labelled images."""

    field: str  # "normalizer", "arch" or "activation"
    correct: Mapping[str, Tensor]  # name -> bool [N]
    best: str
    sure: bool  # the best differs from every other by more than chance

    @property
    def accuracies(self) -> dict[str, float]:
        return {name: right.float().mean().item() for name, right in self.correct.items()}


def tell(model: RobustClassifier, x_u8: Tensor, y: Tensor) -> tuple[RobustClassifier, list[Telling]]:
    """The model read in the way that classifies x_u8 [N,3,H,W] best as y [N], and how the other readings did.

    Only what the file left open is tried: the usual normalisers where none was found, architectures with the same
    tensors, and activations where none is known. A reading replaces the assumed one only where a paired sign test is
    sure of it.
    """
    source = model.description.recipe.get("source", {})
    tellings: list[Telling] = []
    if source.get("normalizer") in (NO_NORMALIZER, USUAL):
        readings = {name: replace(model.description, normalizer=value) for name, value in NORMALIZERS.items()}
        model = _choose(model, "normalizer", readings, x_u8, y, tellings)
    if also := [arch for arch in source.get("also_fits", []) if ":" not in arch]:
        readings = {arch: replace(model.description, arch=arch) for arch in (model.description.arch, *also)}
        model = _choose(model, "arch", readings, x_u8, y, tellings)
    if source.get("activation") in (ASSUMED_RELU, USUAL):
        readings = {name: replace(model.description, activation=name) for name in ACTIVATIONS}
        model = _choose(model, "activation", readings, x_u8, y, tellings)
    return model, tellings


def _choose(
    model: RobustClassifier,
    field: str,
    readings: Mapping[str, Description],
    x_u8: Tensor,
    y: Tensor,
    tellings: list[Telling],
) -> RobustClassifier:
    """The model as the surely best reading has it, else as it came; what was seen joins the tellings."""
    assumed = next((name for name, description in readings.items() if description == model.description), ASSUMED)
    models = {name: _as_described(model, description) for name, description in readings.items()}
    models.setdefault(assumed, model)
    correct = {name: correct_mask(each, x_u8, y) for name, each in models.items()}
    best = max(correct, key=lambda name: (int(correct[name].sum()), name == assumed))
    sure = all(_surely_better(correct[best], other) for name, other in correct.items() if name != best)
    tellings.append(Telling(field, correct, best, sure))
    if best == assumed or not sure:
        return model
    chosen = models[best]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in tellings[-1].accuracies.items())
    said = {**model.description.recipe["source"], field: f"{best}, by accuracy on {len(y)} labelled images ({shares})"}
    recipe = {**model.description.recipe, "source": said}
    return RobustClassifier(chosen.network, replace(chosen.description, recipe=recipe)).eval()


def _as_described(model: RobustClassifier, description: Description) -> RobustClassifier:
    """The same tensors in the network that `description` describes."""
    if (description.arch, description.activation) == (model.description.arch, model.description.activation):
        return RobustClassifier(model.network, description).eval()
    other = RobustClassifier.from_description(description)
    other.network.load_state_dict(model.network.state_dict())
    return other.to(model.mean.device).eval()


@torch.no_grad()
def correct_mask(model: RobustClassifier, x_u8: Tensor, y: Tensor) -> Tensor:
    """bool [N]: the images that the model puts in their class."""
    device = model.mean.device
    parts = zip(x_u8.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([model(to_float(x.to(device))).argmax(1).cpu() == labels for x, labels in parts])


def _surely_better(right: Tensor, other: Tensor) -> bool:
    wins, losses = int((right & ~other).sum()), int((other & ~right).sum())
    return wins - losses > Z_SCORE * max(wins + losses, 1) ** 0.5


def summary(tellings: Sequence[Telling]) -> list[dict[str, object]]:
    """The tellings, ready for JSON."""
    return [{"field": t.field, "accuracy": t.accuracies, "best": t.best, "sure": t.sure} for t in tellings]
