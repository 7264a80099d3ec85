"""An image-text model and the texts that a person writes, together one classifier."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from robust_models.checkpoints.encoder_head import with_head
from robust_models.checkpoints.hub import OPEN_CLIP
from robust_models.checkpoints.layouts import Found
from robust_models.checkpoints.ours import Given
from robust_models.checkpoints.subtrees import State
from robust_models.checkpoints.words.open_clip_models import open_open_clip
from robust_models.checkpoints.words.prompts import Texts
from robust_models.checkpoints.words.two_towers import open_two_towers
from robust_models.errors import UserError


def with_texts(
    checkpoint: str | Path,
    path: Path,
    tensors: State | None,
    metadata: dict[str, str],
    encoder: Found | None,
    given: Given,
    head: str | Path | None,
    asked: tuple[str | None, str | None],
    *,
    ema: bool,
) -> tuple[Found, Given]:
    """What a checkpoint with a zero-shot head of texts holds, and what is given of it: its classes are the texts.

    The checkpoint is an image-text model: open_clip's, or a file of this project (tensors and metadata, else None and
    {}). Or it holds an image encoder of CLIP, and `head` names open_clip's model whose texts that was trained beside.
    asked: the prompt and the template. UserError for a head or averaged weights of a model that has both towers.
    """
    prompt, template = asked
    texts = Texts.of(prompt, given.class_names, template)
    given = replace(given, class_names=texts.names)
    about: dict[str, Any] = {"texts": " | ".join(text for one in texts.texts for text in one)[:500]}
    if encoder is not None:
        side = open_open_clip(str(head))
        return with_head(encoder, texts.head(side), str(head), about, path), given
    for name, value in (("head", head), ("ema", ema)):
        if value:
            raise UserError(f"{name}: does not apply to {checkpoint}, whose texts are its head")
    if tensors is not None and not str(checkpoint).startswith(OPEN_CLIP):
        side = open_two_towers(tensors, metadata, path)
    else:
        side = open_open_clip(str(checkpoint))
    found, rows = side.found(path), texts.head(side)
    state = {**found.state, "head.weight": rows["weight"], "logit_scale": rows["logit_scale"].exp()}
    return replace(found, variants=[state], metadata={**found.metadata, **about}), given
