"""Refinement as a function of tensors: at the end of a sampling loop, or over a stream of batches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from refine.method import AGAINST_WEIGHT, STEPS, ClassMeans, LossName, bigroc, pseudo_labels
from refine.network import beside, together
from refine.stopping import MEDIAN, recorded_level
from robust_models.attacks import Center, Keep, Loss, check_labels
from robust_models.classifier import Description, RobustClassifier, class_names_of
from robust_models.errors import UserError
from robust_models.images.pixels import check_images
from robust_models.labels import class_index
from robust_models.threat import NormName

Models = nn.Module | Sequence[nn.Module]
Batch = Tensor | tuple[Tensor, Tensor]
_OTHER_RANGE = (
    "clamp them, or say Refiner(..., pixel_range=(-1, 1)) where that is their range (eps stays in [0,1] units)"
)


class Refiner:
    """x_ref = refiner(x, y): images of a generator, refined with a robust classifier.

        refiner = Refiner(robust_models.load("cifar10-l2-small"), eps=1, pixel_range=(-1, 1))
        x = refiner(generator(z))

    x is [N,3,H,W] of any floating dtype, size and device; x_ref is alike, computed in float32 on the classifier's
    device. Works inside no_grad and inference_mode; no gradient flows through it. Where a RobustClassifier is made for
    another size it sees the images resized. Several classifiers: their losses are averaged.

    targets      where no y is given: "pseudo" (the classifier's guess), one class for all by name or index, or "given",
                 which insists on y.
    pixel_range  (0, 1) or (-1, 1), that of x and x_ref. eps and step_size are in [0,1] units for either: halve an eps
                 that was meant for pixels in [-1,1].
    stop_energy  "median" is that of real images which a classifier trained to generate records.
    stop_distance  refine.class_means(model, real images).
    against      a weaker classifier of the same classes, whose loss the steps raise, against_weight times as much.
    The other settings are those of refine.bigroc. UserError for what does not fit.
    """

    def __init__(
        self,
        model: Models,
        eps: float,
        *,
        steps: int = STEPS,
        step_size: float | None = None,
        norm: NormName = "l2",
        center: Center = "input",
        keep: Keep = "last",
        loss: LossName | Loss = "ce",
        stop_energy: float | Literal["median"] | None = None,
        stop_confidence: float | None = None,
        stop_distance: ClassMeans | None = None,
        against: nn.Module | None = None,
        against_weight: float = AGAINST_WEIGHT,
        targets: str | int = "pseudo",
        pixel_range: tuple[float, float] = (0, 1),
    ) -> None:
        if tuple(pixel_range) not in ((0, 1), (-1, 1)):
            raise UserError(f"pixel_range: {pixel_range} is neither (0, 1) nor (-1, 1)")
        self.model = together(model)
        self.attack = bigroc(
            eps,
            steps=steps,
            step_size=step_size,
            norm=norm,
            center=center,
            keep=keep,
            loss=loss,
            stop_energy=recorded_level(_descriptions(self.model)) if stop_energy == MEDIAN else stop_energy,
            stop_confidence=stop_confidence,
            stop_distance=stop_distance,
            against=None if against is None else beside(against, model),
            against_weight=against_weight,
        )
        self.class_names = class_names_of(self.model)
        self.low, self.high = pixel_range
        self.targets = targets if targets in ("pseudo", "given") else self._class(targets)

    @torch.inference_mode(False)  # in inference mode there are no gradients, not even under enable_grad
    def __call__(self, x: Tensor, y: Tensor | Sequence[int] | None = None) -> Tensor:
        """x [N,3,H,W], y [N] class indices -> x_ref, of x's shape, dtype, device and range."""
        check_images(x, name="images", channels=3, low=self.low, high=self.high, advice=_OTHER_RANGE)
        place = next(self.model.parameters(), x)
        x01 = x.detach().to(place.device, torch.promote_types(torch.float32, place.dtype), copy=True)
        x01 = (x01 - self.low) / (self.high - self.low)
        x_ref = self.attack(self.model, x01, self._targets(x01, y))
        return (x_ref * (self.high - self.low) + self.low).to(x.device, x.dtype)

    def _targets(self, x: Tensor, y: Tensor | Sequence[int] | None) -> Tensor:
        if y is not None:
            y = torch.as_tensor(y)
            check_labels(y, len(x), None if self.class_names is None else len(self.class_names))
            return y.to(x.device, torch.int64, copy=True)
        if self.targets == "given":
            raise UserError("y: None, and targets is 'given'; pass the classes, or targets='pseudo'")
        if self.targets == "pseudo":
            return pseudo_labels(self.model, x)
        return torch.full((len(x),), int(self.targets), device=x.device)

    def _class(self, name: str | int) -> int:
        if self.class_names is not None:
            return class_index(name, self.class_names, source="targets")
        if isinstance(name, int):
            return name
        raise UserError(f"targets: {name!r} is neither 'pseudo' nor 'given', and the classifier names no classes")


def _descriptions(model: nn.Module) -> list[Description]:
    return [part.description for part in model.modules() if isinstance(part, RobustClassifier)]


@overload
def refine(
    model: Models, images: Tensor, y: Tensor | Sequence[int] | None = None, *, eps: float, **settings: Any
) -> Tensor: ...
@overload
def refine(
    model: Models, images: Iterator[Batch] | Sequence[Batch], y: None = None, *, eps: float, **settings: Any
) -> Iterator[Tensor]: ...
def refine(
    model: Models,
    images: Tensor | Iterator[Batch] | Sequence[Batch],
    y: Tensor | Sequence[int] | None = None,
    *,
    eps: float,
    **settings: Any,
) -> Tensor | Iterator[Tensor]:
    """images [N,3,H,W] float in [0,1], refined towards the classes y [N] (pseudo-labels where None); same shape.

    images may also be an iterator of such batches, or of pairs (batch, y): the result is then an iterator, too, which
    takes a batch from it whenever one is asked for. eps is in [0,1] pixel units: halve what was meant for pixels in
    [-1,1]. The settings are Refiner's: steps, step_size (default 1.5 * eps / steps), norm, center, keep, loss,
    stop_energy, stop_confidence, stop_distance, against, against_weight, targets, pixel_range.
    """
    refiner = Refiner(model, eps, **settings)
    if isinstance(images, Tensor) or hasattr(images, "dtype") or not isinstance(images, Iterable):
        return refiner(images, y)  # type: ignore[arg-type]  (what is no tensor is refused there)
    if y is not None:
        raise UserError("y: labels for an iterator of images; let it give pairs (images, y) instead")
    return (refiner(*batch) if isinstance(batch, tuple | list) else refiner(batch) for batch in images)
