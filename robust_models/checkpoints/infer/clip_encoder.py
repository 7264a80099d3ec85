"""Image encoders of CLIP (OpenAI, open_clip; FARE and TeCoA are such) with the head that a person gave them."""

import math
import re

from robust_models.checkpoints.infer.match import MAX_BLOCKS, MAX_WIDTH, Match, shape, size
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import NORMALIZERS


def encoder_of(state: State) -> State | None:
    """The tensors of a vision transformer of CLIP under OpenAI's names, in its own file or in a whole CLIP's."""
    if "visual.class_embedding" in state:
        state = {n.removeprefix("visual."): tensor for n, tensor in state.items() if n.startswith("visual.")}
    names = {"class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_post.weight"}
    return state if names <= state.keys() and state["proj"].ndim == 2 else None


def clip_classifier(state: State) -> Match | None:
    """An encoder under `visual.`, and `head.weight` beside it; GELU's variant leaves no trace, most have OpenAI's."""
    encoder = encoder_of(state)
    if encoder is None or "head.weight" not in state:
        return None
    width, _, patch, _ = (*shape(encoder, "conv1.weight"), 0, 0, 0, 0)[:4]
    block = re.compile(r"transformer\.resblocks\.\d{1,4}\.ln_1\.weight")
    layers = sum(block.fullmatch(name) is not None for name in encoder)
    side = math.isqrt(max(0, size(encoder, "positional_embedding") - 1))
    numbers = (patch, side * patch, width, layers, size(encoder, "proj", 1))
    if not all(0 < number <= MAX_WIDTH for number in numbers) or numbers[3] > MAX_BLOCKS:
        return None
    name = "clip_vit" + "".join(f"_{letter}{number}" for letter, number in zip("piwld", numbers, strict=True))
    name += "_linear" if "head.bias" in state else ""
    pixels = numbers[1]
    return Match(name, state, "quick_gelu", image_size=pixels, usual_size=pixels, normalizer=NORMALIZERS["clip"])
