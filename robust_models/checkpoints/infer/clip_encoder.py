"""Image encoders of CLIP (OpenAI, open_clip; FARE and TeCoA are such) with the head that a person gave them."""

import math
import re

import torch
from torch import Tensor

from robust_models.architectures.clip_resnet import STRIDE
from robust_models.checkpoints.infer.match import MAX_BLOCKS, MAX_WIDTH, Match, depths, shape, size
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import NORMALIZERS

_VIT = {"class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_post.weight"}
_RESNET = {"attnpool.positional_embedding", "attnpool.c_proj.weight", "conv3.weight", "layer1.0.conv1.weight"}
# transformers' name -> OpenAI's; of blocks, what stands behind their number.
_OUTER = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    **{f"pre_layrnorm.{end}": f"ln_pre.{end}" for end in ("weight", "bias")},  # the typing error is theirs
    **{f"post_layernorm.{end}": f"ln_post.{end}" for end in ("weight", "bias")},
}
_INNER = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}


def encoder_of(state: State) -> State | None:
    """The tensors of a ViT or ResNet of CLIP under OpenAI's names, in its own file or in a whole CLIP's, or as
    transformers names a ViT's.
    """
    if "visual_projection.weight" in state:
        state = _from_transformers(state)
    elif "visual.class_embedding" in state or "visual.attnpool.c_proj.weight" in state:
        state = {n.removeprefix("visual."): tensor for n, tensor in state.items() if n.startswith("visual.")}
    return state if (_VIT <= state.keys() or _RESNET <= state.keys()) and embedding_of(state) else None


def _from_transformers(state: State) -> State:
    """Tensors that are not known keep their names, and then fit no network."""
    body = "vision_model." if "vision_model.embeddings.class_embedding" in state else ""
    found: State = {"proj": state["visual_projection.weight"].T} if size(state, "visual_projection.weight", 1) else {}
    rows: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        inside = name.removeprefix(body)
        block = re.fullmatch(r"encoder\.layers\.(\d{1,4})\.(.+)\.(weight|bias)", inside)
        if inside in _OUTER:
            found[_OUTER[inside]] = tensor
        elif block and (part := re.fullmatch(r"self_attn\.([qkv])_proj", block[2])):
            rows.setdefault(f"transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}", {})[part[1]] = tensor
        elif block:
            found[f"transformer.resblocks.{block[1]}.{_INNER.get(block[2], block[2])}.{block[3]}"] = tensor
    for name, parts in rows.items():
        if len({part.shape[1:] for part in parts.values()}) == 1 and len(parts) == 3 and parts["q"].ndim:
            found[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return found


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
