"""One classifier or several as one network for images of any size."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError


class Network(nn.Module):
    """x [N,3,H,W] of any size in [0,1] -> logits [N,classes], plus features, device and class names.

    What has the classifier's size is not touched; else a differentiable resize: bilinear with antialiasing, half-pixel
    centres. A refined image is then one that looks better to the classifier at its own size, and the gradient spreads
    over every pixel of the large image.
    """

    def __init__(self, model: RobustClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.fitted(x))

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees in x of any size, [N,D] float32. UserError where there is no such layer."""
        return self.model.features(self.fitted(x))

    def fitted(self, x: Tensor) -> Tensor:
        """x at the classifier's size."""
        size = (self.model.image_size, self.model.image_size)
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)

    def here(self, x: Tensor) -> Tensor:
        """x on the network's device."""
        return x.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the classifier is."""
        return self.model.mean.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classifier's classes, in the order of its logits."""
        return self.model.class_names

    @property
    def image_size(self) -> int:
        """Side of the images that the classifier was made for, pixels."""
        return self.model.image_size


class Ensemble(nn.Module):
    """x [N,3,H,W] in [0,1] -> logits of K classifiers with the same classes, [K,N,classes]."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models])


def together(models: nn.Module | Sequence[nn.Module]) -> nn.Module:
    """x of any size -> logits: [N,classes] of one classifier, [K,N,classes] of several.

    Each RobustClassifier sees the images at its own size; another module sees them as they are. UserError where
    classifiers do not have the same class names in the same order.
    """
    if isinstance(models, nn.Module):
        return _at_its_size(models)
    if not models:
        raise UserError("model: an empty list; give at least one classifier")
    _check_same_classes([model for model in models if isinstance(model, RobustClassifier)])
    if len(models) == 1:
        return _at_its_size(models[0])
    return Ensemble([_at_its_size(model) for model in models])


def beside(other: nn.Module, models: nn.Module | Sequence[nn.Module]) -> nn.Module:
    """A further classifier with a part of its own, for images of any size. UserError where its classes are others."""
    together([*([models] if isinstance(models, nn.Module) else models), other])
    return _at_its_size(other)


def consensus(logits: Tensor) -> Tensor:
    """[N,classes] whose softmax is the mean of the classifiers' probabilities; one classifier's logits as they are."""
    if logits.ndim == 2:
        return logits
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - torch.tensor(float(len(logits))).log()


@contextmanager
def noted_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the last linear layer of each classifier of `model` sees inside the block, [N,D] for each pass of each.

    UserError where there is no such layer.
    """
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        for part in model.modules():
            if isinstance(part, RobustClassifier):
                hooks.enter_context(part.noting_features(seen))
        yield seen


def confidence(logits: Tensor, target: Tensor) -> Tensor:
    """Probability of each image's target class: logits [N,classes], target [N] -> [N]."""
    return logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def images_first(logits: Tensor) -> Tensor:
    """[K,n,classes] of several classifiers -> [n,K,classes], and back; one classifier's [n,classes] as they are."""
    return logits if logits.ndim == 2 else logits.transpose(0, 1)


def _at_its_size(model: nn.Module) -> nn.Module:
    return Network(model) if isinstance(model, RobustClassifier) else model


def _check_same_classes(models: Sequence[RobustClassifier]) -> None:
    for k, model in enumerate(models[1:], start=2):
        ours, theirs = models[0].class_names, model.class_names
        if len(ours) != len(theirs):
            raise UserError(
                f"model: classifier 1 has {len(ours)} classes, classifier {k} has {len(theirs)}; they must be the same"
            )
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one != other:
                raise UserError(
                    f"model: class {i} is {one!r} for classifier 1 and {other!r} for classifier {k}; the classes must "
                    f"be the same, in the same order"
                )
