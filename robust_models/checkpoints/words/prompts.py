"""Texts as classes: prompts, and class names set into templates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.errors import UserError
from robust_models.labels import prompts_of

TEMPLATE = "a photo of a {}"
CONTRAST = "a photo"  # what a single prompt is told apart from


class TextSide(Protocol):
    """An image-text model's way from texts to the space that its images lie in."""

    @property
    def scale(self) -> float:
        """Logits are that many times the cosine."""
        ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of unit length, [T,D] float32. UserError for a text that it cannot read."""
        ...


@dataclass(frozen=True)
class Texts:
    """Classes, and for each the texts that stand for it, whose embeddings are averaged."""

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, prompt: str | None, class_names: Sequence[str] | None, template: str | None) -> "Texts":
        """Prompts are classes as they stand, and class names are set into each template ("{}" is their place).

        Several prompts or templates have "|" between them; templates may also be the lines of a text file. A single
        prompt is told apart from CONTRAST. UserError without any class, and for a template without a place.
        """
        prompts = prompts_of(prompt)
        if prompt is not None and not prompts:
            raise UserError(f"prompt: {prompt!r} says nothing; write what the image is to show")
        named = list(class_names or ())
        if template is not None and not named:
            raise UserError(f"template: {template!r} is for class names (--class-names), which are not given")
        if not prompts and not named:
            raise UserError(
                "prompt: is required: this is an image-text model, whose classes are texts; give --prompt TEXT, or "
                "--class-names NAMES"
            )
        templates = _templates(template)
        texts = {text: (text,) for text in prompts}
        texts |= {name: tuple(one.replace("{}", name) for one in templates) for name in named}
        if len(texts) == 1:
            texts |= {CONTRAST: (CONTRAST,)}
        return cls(tuple(texts), tuple(texts.values()))

    def head(self, side: TextSide) -> dict[str, Tensor]:
        """A zero-shot head: weight [classes,D] of unit rows, and the logarithm of the scale."""
        rows = side.embed([text for texts in self.texts for text in texts]).split([len(texts) for texts in self.texts])
        weight = torch.stack([F.normalize(row.mean(dim=0), dim=0) for row in rows])
        return {"weight": weight, "logit_scale": torch.tensor(math.log(side.scale))}


def _templates(template: str | None) -> list[str]:
    text = TEMPLATE if template is None else template
    try:
        found = Path(text).read_text("utf-8").splitlines() if Path(text).is_file() else text.split("|")
    except (OSError, ValueError):  # too long for a name, a null byte, no text
        found = text.split("|")
    found = [one.strip() for one in found if one.strip()]
    if bad := next((one for one in found or [text] if "{}" not in one), None):
        raise UserError(f"template: {bad!r} has no {{}} where the name of the class is to stand")
    return found
