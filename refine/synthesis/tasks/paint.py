"""A feature of the classifier, or a class, raised inside a mask: painting with what the classifier has learned to see.

Santurkar et al. 2019, arXiv:1906.09453. `--task features` shows which feature is what.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from refine.network import Network
from refine.synthesis.config import Ball, InputConfig, by_size
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.loop import faithful_outside, towards_class
from refine.synthesis.masks import read_masks, rectangle
from refine.synthesis.task import Objective, Shown, Source, Task, Work
from refine.synthesis.tasks.features import check_feature
from robust_models.images import to_u8
from robust_models.runtime.config import STRICT, Number

STRENGTH, FIDELITY = 0.1, 90.0  # the paper's weights
SMALL = Ball(5, 0.15, 60)  # by eye, of eps 4 and 5 with the embedded classifier: the paper has none for CIFAR-10
LARGE = Ball(70, 1, 140)

EXAMPLES = """\
  bigroc refine --task features --ckpt cifar10-l2-small --input real.npz --out features.png
  bigroc refine --task paint --ckpt cifar10-l2-small --input real.npz --out painted.npz --feature 17 \\
      --rectangle 0,0,16,32 --grid painted.png
  bigroc refine --task paint --ckpt imagenet.pt --input photos/ --out painted/ --feature 1203 --mask sky.png
  bigroc refine --task paint --ckpt imagenet.pt --input photos/ --out painted/ --targets class:dog --mask grass.png
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PaintConfig(InputConfig):
    """What to paint, where and how much of it."""

    feature: int | None = Field(
        default=None,
        description="index of the feature to raise, which --task features lists (null: the class of --targets instead)",
    )
    mask: Path | None = Field(
        default=None, description="a mask for all images or an image set with one for each; white is to be painted"
    )
    rectangle: str | None = Field(default=None, description="or top,left,height,width of what is to be, in pixels")
    strength: Number = Field(default=STRENGTH, gt=0, description="weight of the feature, or of the class")
    fidelity: Number = Field(default=FIDELITY, ge=0, description="weight of the squared change outside the mask")
    paste: bool = Field(default=True, description="put the pixels outside the mask back, bit for bit")

    @model_validator(mode="after")
    def _what_and_where(self) -> "PaintConfig":
        if (self.mask is None) == (self.rectangle is None):
            raise ValueError("mask: give one of --mask and --rectangle, which say where to paint")
        if self.feature is None and self.targets is None and self.prompt is None:
            raise ValueError("feature: say what to paint: --feature INDEX, or a class with --targets class:NAME")
        return self


def raising(feature: int, strength: float) -> Objective:
    """-strength * the feature, [N]. One that a ReLU leaves at 0 all over an image has no gradient there and stays."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return -strength * model.features(x)[:, feature]  # type: ignore[operator]

    return objective


def closer(strength: float) -> Objective:
    """strength * the cross-entropy to the class, [N]."""
    return lambda model, x, y: strength * towards_class(model, x, y)


def work_on(config: PaintConfig, network: Network, x: Tensor, mask: Tensor | None, y: Tensor) -> Work:
    """The images x, and the loss that raises the feature, or the class, inside the mask."""
    assert mask is not None
    what = closer(config.strength) if config.feature is None else _raising(config, network)
    x0, mask = network.here(x), network.here(mask)
    return Work(
        start=x0,
        y=network.here(y),
        objective=faithful_outside(what, x0, mask, config.fidelity),
        keep_outside=mask if config.paste else None,
        original_u8=to_u8(x0),
    )


def _raising(config: PaintConfig, network: Network) -> Objective:
    assert config.feature is not None
    return raising(check_feature(network.model, config.feature), config.strength)


def open_source(config: PaintConfig, network: Network) -> Source:
    """The images, and what of each is to be painted."""
    if config.feature is not None:
        check_feature(network.model, config.feature)
    images = open_set(config, config.out)
    if config.mask is not None:
        masks = read_masks(config.mask, images)
    else:
        masks = rectangle(str(config.rectangle), images.size)
    targets = find_targets(config, images, network)

    def work(rows: Tensor) -> Work:
        return work_on(config, network, read(images, rows), masks(rows), targets[rows])

    shown = Shown(after="painted") if config.feature is None else _shown_feature(config)
    return Source(targets, images.size, work, lambda rows: to_u8(read(images, rows)), images.names, shown)


def _shown_feature(config: PaintConfig) -> Shown:
    def caption(row: dict[str, Any]) -> str:
        before, after = (-row[f"objective_{when}"] / config.strength for when in ("before", "after"))
        return f"feature {config.feature}\n{before:.2f} > {after:.2f}"

    cost = "" if config.paste else " (less what the change outside the mask costs)"
    note = f"Below each image: the feature that is raised, its value before > after{cost}."
    return Shown(after="painted", caption=caption, note=note)


TASK = Task(
    name="paint",
    about="Raise a feature of the classifier, or a class, inside a mask.",
    schema=PaintConfig,
    defaults=by_size(small=SMALL, large=LARGE),
    open=open_source,
    examples=EXAMPLES,
    work=work_on,
)
