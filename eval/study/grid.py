"""The cells of a study, in their order, and the shares into which a batch system cuts them."""

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eval.study.config import ImagesSpec, StudyConfig
from eval.study.results import Axes
from robust_models.errors import UserError

T = TypeVar("T")


def grid(config: StudyConfig, labelled: Collection[str]) -> list[Axes]:
    """Every cell once, the raw ones first. labelled: the names of the image sets that have labels."""
    return [
        *(Axes(images.name, seed=seed) for images in config.images for seed in _seeds(config, images)),
        *(
            Axes(images.name, classifier.name, norm, eps, steps, targets, loss, seed, stop)
            for images, classifier, norm in itertools.product(config.images, config.classifiers, config.norm)
            for eps, steps, targets, loss, seed, stop in itertools.product(
                config.radii(norm, images),
                config.steps,
                images.targets or config.targets or ("given" if images.name in labelled else "pseudo",),
                config.loss,
                _seeds(config, images),
                config.stop,
            )
        ),
    ]


def _seeds(config: StudyConfig, images: ImagesSpec) -> Sequence[int]:
    """A set that is taken whole is the same for every seed."""
    return config.seeds if images.limit is not None else config.seeds[:1]


def in_words(axes: Axes) -> str:
    """ "vae by robust: l2 eps 3, 7 steps, pseudo, ce"; of seeds, 0 goes without saying, and that nothing stops."""
    seed = f", seed {axes.seed}" if axes.seed else ""
    if axes.is_raw:
        return f"{axes.images} raw{seed}"
    eps = axes.eps if axes.eps == "auto" else f"{axes.eps:g}"
    ball = f"{axes.norm} eps {eps}, {axes.steps} steps"
    ball += "" if axes.stop == "never" else f", stop {axes.stop}"
    return f"{axes.images} by {axes.classifier}: {ball}, {axes.targets}, {axes.loss}{seed}"


@dataclass(frozen=True)
class Share:
    """The i-th of n shares, i from 1."""

    i: int = 1
    n: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """ "2/8". UserError for anything else."""
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"cell: {text!r} is no share; expected I/N with I from 1 to N, such as 2/8")
        return cls(int(found[1]), int(found[2]))

    def of(self, everything: Sequence[T]) -> list[T]:
        """Every n-th from the i-th on, so that the shares of a grid cost about the same."""
        return list(everything[self.i - 1 :: self.n])
