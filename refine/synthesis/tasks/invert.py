"""Images with the latent of others: what a robust classifier keeps of an image, made visible.

The objective is the distance of the features, relative to the wanted ones' length. L2 steps go along the gradient at
length 1, so that its square, or any scale, would make the same steps; this one can be read off the manifest.
Engstrom et al. 2019, arXiv:1906.00945; Santurkar et al. 2019, arXiv:1906.09453.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from refine.network import Network
from refine.synthesis.config import Ball, InputConfig, by_size
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.task import Shown, Source, Task, Work
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.images import ImageSet, open_images, to_u8
from robust_models.runtime.config import STRICT
from robust_models.runtime.seeds import STEP, generator

SMALL = Ball(20, 0.1, 200)
LARGE = Ball(140, 0.7, 200)  # the same for seven times the side; not measured
NOISE_STD = 0.1
GREY = (0.5, 0.5, 0.5)

EXAMPLES = """\
  bigroc refine --task invert --ckpt cifar10-l2-small --input real.npz --out inverted.npz --grid inverted.png
  bigroc refine --task invert --ckpt cifar10-l2-small --input real.npz --out inverted.npz --start-from other.npz
"""

Start = Callable[[Tensor], Tensor]  # rows [n] -> where the loop begins, [n,3,H,W] float in [0,1]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InvertConfig(InputConfig):
    """Where to begin on the way to the given images' features."""

    start_from: str = Field(
        default="noise",
        description="where to begin: noise, mean (the colour that the classifier's normaliser takes off), or an image "
        "set of the same size (its image k for image k; begun again where it is shorter)",
    )


def relative_distance(features: Tensor, wanted: Tensor) -> Tensor:
    """L2 distance of features [N,D] from the wanted ones, in units of the latter's length, [N]."""
    length = wanted.norm(dim=1).clamp_min(torch.finfo(wanted.dtype).tiny)
    return (features - wanted).norm(dim=1) / length


def open_source(config: InvertConfig, network: Network) -> Source:
    """The starts, and the distance of their features from those of the given images."""
    images = open_set(config, config.out)
    _ = network.model.head  # UserError where there are no features
    start = find_start(config.start_from, config.seed, images, network.model)
    targets = find_targets(config, images, network)

    def work(rows: Tensor) -> Work:
        with torch.no_grad():
            wanted = network.features(network.here(read(images, rows)))

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return relative_distance(model.features(x), wanted)  # type: ignore[operator]

        return Work(network.here(start(rows)), network.here(targets[rows]), objective)

    shown = Shown(
        before="given",
        after="found",
        caption=lambda row: f"{row['class']}\n{row['objective_before']:.2f} > {row['objective_after']:.2f}",
        note="Below each image: its class, and how far the features are from the given image's, in units of their "
        "length, at the start > in the end.",
    )
    return Source(targets, images.size, work, lambda rows: to_u8(read(images, rows)), images.names, shown)


def find_start(name: str, seed: int, images: ImageSet, classifier: RobustClassifier) -> Start:
    """Where the inversion of each image of the set begins; noise is drawn anew for each of them."""
    if name in ("noise", "mean"):
        mean = torch.tensor(_mean_colour(classifier)).view(1, 3, 1, 1).expand(1, 3, *images.size)
        if name == "mean":
            return lambda rows: mean.repeat(len(rows), 1, 1, 1)
        return lambda rows: torch.cat([_noisy(mean, seed, k) for k in rows.tolist()])
    others = open_images(Path(name))
    if others.size != images.size:
        raise UserError(
            f"start_from: {name} has images of {others.size[1]}x{others.size[0]} pixels, but those to invert have "
            f"{images.size[1]}x{images.size[0]}; they must be the same"
        )
    return lambda rows: torch.cat([read(others, row) for row in (rows % len(others)).split(1)])


def _mean_colour(classifier: RobustClassifier) -> tuple[float, ...]:
    mean = classifier.description.normalizer.mean
    return mean if any(mean) else GREY


def _noisy(mean: Tensor, seed: int, k: int) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator("cpu", seed, STEP, k))
    return (mean + NOISE_STD * noise).clamp(0, 1)


TASK = Task(
    name="invert",
    about="Find images with the same latent as given ones.",
    schema=InvertConfig,
    defaults=by_size(small=SMALL, large=LARGE),
    open=open_source,
    examples=EXAMPLES,
)
