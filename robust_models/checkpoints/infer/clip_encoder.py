"""Image encoders of CLIP (OpenAI, open_clip; FARE and TeCoA are such) with the head that a person gave them."""

import math
import re

from robust_models.architectures.clip_resnet import STRIDE
from robust_models.checkpoints.infer.match import MAX_BLOCKS, MAX_WIDTH, Match, depths, shape, size
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import NORMALIZERS

_VIT = {"class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_post.weight"}
_RESNET = {"attnpool.positional_embedding", "attnpool.c_proj.weight", "conv3.weight", "layer1.0.conv1.weight"}


def encoder_of(state: State) -> State | None:
    """The tensors of a ViT or ResNet of CLIP under OpenAI's names, in its own file or in a whole CLIP's."""
    if "visual.class_embedding" in state or "visual.attnpool.c_proj.weight" in state:
        state = {n.removeprefix("visual."): tensor for n, tensor in state.items() if n.startswith("visual.")}
    return state if (_VIT <= state.keys() or _RESNET <= state.keys()) and embedding_of(state) else None


def embedding_of(encoder: State) -> int:
    """Numbers in an embedding of the encoder; 0 where its last tensor is no matrix."""
    last = shape(encoder, "proj") or shape(encoder, "attnpool.c_proj.weight")[::-1]
    return last[1] if len(last) == 2 else 0


def clip_classifier(state: State) -> Match | None:
    """An encoder under `visual.`, and `head.weight` beside it."""
    encoder = encoder_of(state)
    if encoder is None or "head.weight" not in state:
        return None
    return _resnet(encoder, state) if _RESNET <= encoder.keys() else _vit(encoder, state)


def _resnet(encoder: State, state: State) -> Match | None:
    blocks = depths(encoder, r"layer([1-4])\.(\d{1,4})\.conv1\.weight")
    side = math.isqrt(max(0, size(encoder, "attnpool.positional_embedding") - 1))
    numbers = (side * STRIDE, size(encoder, "conv3.weight"), embedding_of(encoder))
    if len(blocks) != 4 or not all(0 < number <= MAX_WIDTH for number in numbers):
        return None
    name = "clip_resnet_b" + "_".join(map(str, blocks)) + "_i{}_w{}_d{}".format(*numbers)
    return _match(name, state, "relu", numbers[0])


def _vit(encoder: State, state: State) -> Match | None:
    """GELU's variant leaves no trace, most have OpenAI's."""
    width, _, patch, _ = (*shape(encoder, "conv1.weight"), 0, 0, 0, 0)[:4]
    block = re.compile(r"transformer\.resblocks\.\d{1,4}\.ln_1\.weight")
    layers = sum(block.fullmatch(name) is not None for name in encoder)
    side = math.isqrt(max(0, size(encoder, "positional_embedding") - 1))
    numbers = (patch, side * patch, width, layers, size(encoder, "proj", 1))
    if not all(0 < number <= MAX_WIDTH for number in numbers) or numbers[3] > MAX_BLOCKS:
        return None
    name = "clip_vit" + "".join(f"_{letter}{number}" for letter, number in zip("piwld", numbers, strict=True))
    return _match(name, state, "quick_gelu", numbers[1])


def _match(name: str, state: State, activation: str, pixels: int) -> Match:
    name += "_linear" if "head.bias" in state else ""
    return Match(name, state, activation, image_size=pixels, usual_size=pixels, normalizer=NORMALIZERS["clip"])
