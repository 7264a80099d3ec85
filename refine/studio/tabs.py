"""What each tab of the page computes: the config of the command that would do the same, and its run on tensors.

Nothing is worded twice: flags are checked by the command's own schema, objectives and steps are the command's own.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from refine.config import RefineConfig
from refine.method import pseudo_labels
from refine.network import Network
from refine.pipeline import attack_of
from refine.studio.config import StudioConfig
from refine.synthesis.config import Ball, SynthesisConfig, by_size
from refine.synthesis.loop import points, stored
from refine.synthesis.task import Task
from refine.synthesis.tasks.explain import ExplainConfig
from refine.synthesis.tasks.generate import usual_ball
from robust_models.attacks import Iterate
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.classifier import Precision, RobustClassifier
from robust_models.errors import UserError, none_of
from robust_models.images import to_float, to_u8
from robust_models.labels import class_index
from robust_models.runtime.config import as_plain, leaves, resolve

Tab = Literal["refine", "paint", "inpaint", "sketch", "translate", "superres", "generate", "explain"]
TABS: tuple[Tab, ...] = get_args(Tab)
MOST_SIDE = 512  # pixels
MOST_STEPS = 500
INPUT, MASK, AGAIN = "input.png", "mask.png", "again"  # files that a saved command reads and writes
REFINE = by_size(small=Ball(2, 0.15, 20), large=Ball(10, 0.75, 20))  # to begin with: the command has no default eps

_BALL = {"eps", "steps", "step_size"}
_CONTROLS: dict[Tab, set[str]] = {
    "refine": _BALL | {"loss"},
    "paint": _BALL | {"feature", "strength", "fidelity"},
    "inpaint": _BALL | {"fill", "fidelity"},
    "sketch": _BALL,
    "translate": _BALL,
    "superres": _BALL | {"factor", "start_from"},
    "generate": _BALL | {"seed"},
    "explain": set(),
}
_MASKED = ("paint", "inpaint")


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Asked:
    """What the page wants computed of an image (none: "generate" begins with a seed) and, on some tabs, a mask."""

    tab: Tab
    height: int = Field(default=0, ge=0)  # pixels
    width: int = Field(default=0, ge=0)
    masked: bool = False
    label: int | None = None  # the class, by its index; None: the classifier's guess
    options: dict[str, int | float | str | None] = Field(default_factory=dict)  # of the command, by the flag's name

    def __post_init__(self) -> None:
        self._check_image()
        for name in self.options:
            if name not in _CONTROLS[self.tab]:
                raise UserError(f"{name}: cannot be set on this tab; it has {', '.join(sorted(_CONTROLS[self.tab]))}")
        steps = self.options.get("steps")
        if isinstance(steps, int | float) and steps > MOST_STEPS:
            raise UserError(f"steps: {steps} is above {MOST_STEPS}, the most that are taken here")

    def _check_image(self) -> None:
        if self.tab == "generate":
            if self.height or self.width or self.masked:
                raise UserError("image: this tab begins with a seed; it takes none")
            return
        if min(self.height, self.width) < 1 or max(self.height, self.width) > MOST_SIDE:
            raise UserError(f"image: {self.width}x{self.height} pixels; sides of 1 to {MOST_SIDE} are taken here")
        if self.masked != (self.tab in _MASKED):
            raise UserError(f"mask: this tab {'needs one' if self.tab in _MASKED else 'has none'}")
        factor = self.options.get("factor")
        if isinstance(factor, int) and factor * max(self.height, self.width) > MOST_SIDE:
            raise UserError(
                f"factor: {factor} makes {factor * self.width}x{factor * self.height} pixels; at most {MOST_SIDE} a "
                "side are made here"
            )

    @property
    def image_bytes(self) -> int:
        """Of the image, RGB, a row after the other."""
        return 3 * self.height * self.width

    @property
    def mask_bytes(self) -> int:
        """Of the mask, one for each pixel, 0 or 255."""
        return self.height * self.width * self.masked


_ASKED = TypeAdapter(Asked)


def parse_asked(values: Any) -> Asked:
    """UserError, which begins with the control's name, for what the page may not ask."""
    try:
        return _ASKED.validate_json(json.dumps(values))  # in which strict means the types of JSON
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(piece) for piece in first["loc"] if str(piece) not in ("int", "float", "str"))
        if first["type"] == "value_error":  # our own checks
            raise UserError(first["msg"].removeprefix("Value error, ")) from error
        if first["type"] == "literal_error":
            raise UserError(f"{name}: {none_of(first['input'], TABS)}") from error
        raise UserError(f"{name or 'request'}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


@dataclass(frozen=True)
class Run:
    """Steps to be taken, ready to go, of one image."""

    y: Tensor  # the class, [1], on the CPU
    ball: Ball
    points: Callable[[], Iterator[Iterate]]  # ball.steps + 1 of them; the caller freezes the model
    objective: Callable[[Tensor], Tensor]  # x [1,3,H,W] in [0,1] -> [1], what the steps lower
    stored: Callable[[Tensor], Tensor]  # an iterate as it is written, uint8 [1,3,H,W]


def config_of(studio: StudioConfig, precision: Precision, asked: Asked, class_names: tuple[str, ...]) -> Any:
    """The config of the command that does what is asked. UserError, which begins with the flag, as the command's."""
    reading = {name: getattr(studio, name) for name in CheckpointFlags.__dataclass_fields__}
    values: dict[str, Any] = {**reading, "ckpt": studio.ckpt, "device": studio.device, "precision": precision}
    values |= {name: value for name, value in asked.options.items() if value is not None}
    if asked.tab == "generate":
        values |= {"out": AGAIN, "num_images": 1}
    else:
        values |= {"input": INPUT, "out": f"{AGAIN}.png" if asked.tab == "refine" else AGAIN}
    if asked.masked:
        values["mask"] = MASK
    return resolve(schema_of(asked.tab), values | _class_flag(asked, class_names))


def schema_of(tab: Tab) -> type:
    """The schema of the tab's command."""
    if tab == "refine":
        return RefineConfig
    return ExplainConfig if tab == "explain" else task_of(tab).schema


def task_of(tab: Tab) -> Task:
    """The synthesis task of the tab."""
    return import_module(f"refine.synthesis.tasks.{tab}").TASK


def _class_flag(asked: Asked, class_names: tuple[str, ...]) -> dict[str, str]:
    """The class, in the flag that the tab's command has for it."""
    if asked.label is None:
        if asked.tab in ("sketch", "translate", "generate"):
            raise UserError("class: choose one; on this tab the classifier does not guess")
        return {}
    if not 0 <= asked.label < len(class_names):
        raise UserError(f"class: {asked.label} is none of the classifier's {len(class_names)} classes")
    name = _spelled(asked.label, class_names, in_list=asked.tab == "generate")
    flags = {"sketch": "target", "translate": "target_class", "generate": "classes"}
    return {flags[asked.tab]: name} if asked.tab in flags else {"targets": f"class:{name}"}


def _spelled(label: int, class_names: tuple[str, ...], *, in_list: bool) -> str:
    """The class by its name, or by its index where that name means another class or would not stay one word."""
    name = class_names[label]
    fits = name == name.strip() and name.isprintable() and name != "null" and not name.startswith("-")
    if fits and not (in_list and "," in name) and class_index(name, class_names, source="class") == label:
        return name
    return str(label)


def run_of(config: Any, asked: Asked, network: Network, x_u8: Tensor | None, mask: Tensor | None) -> Run:
    """x_u8 [1,3,H,W], or None on the tab "generate"; mask [1,1,H,W] of 0 and 1. The tab "explain" has no steps."""
    if asked.tab == "refine":
        assert x_u8 is not None
        return _refinement(config, asked, network, to_float(x_u8))
    return _synthesis(config, asked, network, x_u8, mask)


def _refinement(config: RefineConfig, asked: Asked, network: Network, x: Tensor) -> Run:
    assert isinstance(config.eps, float)
    attack, x = attack_of(config, config.eps), network.here(x)
    y = _class_of(asked, network, x)
    return Run(
        y.cpu(),
        Ball(attack.eps, attack.step_size, attack.steps, attack.norm),
        lambda: attack.iterates(network, x, y, x),
        lambda x: attack.loss(network(x), y),
        to_u8,
    )


def _synthesis(
    config: SynthesisConfig, asked: Asked, network: Network, x_u8: Tensor | None, mask: Tensor | None
) -> Run:
    task = task_of(asked.tab)
    usual = None
    if x_u8 is None:
        source = task.open(config, network)
        work, usual = source.work(torch.zeros(1, dtype=torch.int64)), source.ball
    else:
        assert task.work is not None
        x = to_float(x_u8)
        y = _class_of(asked, network, network.here(task.start(config, x, mask)))
        work = task.work(config, network, x, mask, y.cpu())
    ball = config.ball(usual or task.defaults(max(work.start.shape[-2:])))
    if ball.steps > MOST_STEPS:
        ball = Ball(ball.eps, ball.step_size, MOST_STEPS, ball.norm)
    return Run(
        work.y.cpu(),
        ball,
        lambda: points(network, work, ball),
        lambda x: work.objective(network, x, work.y),
        lambda x: stored(x, work),
    )


def _class_of(asked: Asked, network: Network, seen: Tensor) -> Tensor:
    """[1] on the network's device: the class asked for, or what the classifier sees in `seen`."""
    return pseudo_labels(network, seen) if asked.label is None else network.here(torch.tensor([asked.label]))


def defaults(tab: Tab, classifier: RobustClassifier) -> dict[str, dict[str, float]]:
    """The ball and steps that a tab begins with, for "small" (up to 64 px) and "large" images."""
    if tab == "explain":
        return {}
    of_side = REFINE if tab == "refine" else task_of(tab).defaults
    balls = {"small": of_side(32), "large": of_side(224)}
    if tab == "generate" and (usual := usual_ball("ascent", classifier.description.generation, classifier.image_size)):
        balls = dict.fromkeys(balls, usual)
    return {
        size: {"eps": ball.eps, "step_size": ball.step_size, "steps": min(ball.steps, MOST_STEPS)}
        for size, ball in balls.items()
    }


def command_words(tab: Tab, config: Any) -> list[str]:
    """The command of the config, as it is typed; files that it names are given by their whole paths."""
    words = ["python", "-m", "refine", *([] if tab == "refine" else ["--task", tab])]
    plain = as_plain(config)
    for leaf in leaves(type(config)):
        value = plain[leaf.name]
        if value is None or (leaf.default is not MISSING and value == _plain_default(leaf.default)):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if leaf.name in ("ckpt", "class_names", "head") and Path(text).exists():
            text = str(Path(text).resolve())
        words += [f"{leaf.flag}={text}"] if text.startswith("-") else [leaf.flag, text]
    return words


def _plain_default(default: Any) -> Any:
    return str(default) if isinstance(default, Path) else default
