"""BIGRoC: robust classifiers, images refined with them, and measures of both, from one import.

>>> import torch
>>> from bigroc import PGD, Refiner, image_quality, load, refine, robust_accuracy, train
>>> x, y = torch.rand(8, 3, 32, 32), torch.arange(8)  # images of a generator in [0,1], and their classes

A classifier by name, or anyone's checkpoint file; its normaliser is inside:

>>> model = load("cifar10-l2-small")
>>> model(x).shape
torch.Size([8, 10])

Images refined towards their classes, at most eps away (L2, pixels in [0,1]); a Refiner stands at the end of a loop:

>>> x_ref = refine(model, x, y, eps=1)
>>> bool(((x_ref - x).flatten(1).norm(dim=1) <= 1 + 1e-4).all())
True
>>> refiner = Refiner(model, eps=1, pixel_range=(-1, 1))
>>> refiner(2 * x - 1).shape
torch.Size([8, 3, 32, 32])

An attack, and the accuracy that it leaves:

>>> x_adv = PGD(eps=0.5, step_size=0.1, steps=7)(model, x, y)
>>> result = robust_accuracy(model, (x, y), eps=0.5, steps=5)
>>> 0 <= result.robust <= result.clean <= 1
True

Scores of images, as arrays, tensors, folders or files; with `reference`, distances as well:

>>> scores = image_quality(x_ref, x, metrics=["fid", "kid"], features="classifier:cifar10-standard-small")
>>> scores["metrics"]
['fid', 'kid']

A classifier of your own, by a recipe with changes:

>>> model = train("cifar_l2_small", epochs=2, **{"data.path": "train.npz"})  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigroc.training import train
    from eval import image_quality, robust_accuracy
    from refine import Refiner, refine
    from robust_models import PGD, UserError, load

__all__ = ["PGD", "Refiner", "UserError", "image_quality", "load", "refine", "robust_accuracy", "train"]

_HOMES = {
    "bigroc.training": ("train",),
    "eval": ("image_quality", "robust_accuracy"),
    "refine": ("Refiner", "refine"),
    "robust_models": ("PGD", "UserError", "load"),
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first asked for; `python -m bigroc` has left out the current folder by then."""
    from robust_models.runtime.lazy import lazy_names

    return lazy_names(__name__, _HOMES)(name)
