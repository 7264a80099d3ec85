"""An image encoder of CLIP and a head from a file of its own, together one classifier."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_models.checkpoints.infer.clip_encoder import embedding_of, encoder_of
from robust_models.checkpoints.layouts import Found
from robust_models.checkpoints.ours import is_safetensors, read_safetensors
from robust_models.checkpoints.subtrees import State
from robust_models.checkpoints.torch_format import read_torch_file
from robust_models.errors import UserError
from robust_models.runtime.files import sha256_of

SCALE = 100.0  # where no file says another: what OpenAI's encoders were trained to, and their limit


def with_head_file(found: Found, file: Path, checkpoint: Path) -> Found:
    """The encoder in a checkpoint with the head in `file` (PyTorch or safetensors), see with_head."""
    return with_head(found, _entries(file), str(file), {"head_sha256": sha256_of(file)}, checkpoint)


def with_head(found: Found, entries: State, source: str, about: dict[str, Any], checkpoint: Path) -> Found:
    """The encoder in a checkpoint with a head of these tensors, which come from `source`.

    A tensor [classes, embedding] (or its transpose) is a zero-shot head, the classes' text embeddings: logits =
    scale * cosine, with the scale of the file's `logit_scale` or the checkpoint's (both its logarithm, as CLIP has it),
    else 100. With `bias` beside `weight` it is a linear layer on the embeddings as they are. UserError where the
    checkpoint is no such encoder, or the head does not fit it.
    """
    encoder = encoder_of(found.state)
    if encoder is None:
        raise UserError(f"head: {checkpoint} is no ViT and no ResNet of CLIP, and only such encoders take a head")
    weight, bias = _weight(entries, embedding_of(encoder), source), entries.get("bias")
    state: State = {f"visual.{name}": tensor for name, tensor in encoder.items()}
    assumed: dict[str, str] = {}
    if isinstance(bias, Tensor):
        state |= {"head.weight": weight, "head.bias": bias.float()}
    else:
        stated = entries.get("logit_scale", found.state.get("logit_scale"))
        scale = stated.float().exp() if isinstance(stated, Tensor) else torch.tensor(SCALE)
        if scale.numel() != 1 or not torch.isfinite(scale).all():
            raise UserError(f"head: logit_scale of {source} or {checkpoint} is not one finite number")
        state |= {"head.weight": torch.nn.functional.normalize(weight, dim=1), "logit_scale": scale.reshape(())}
        assumed = {} if isinstance(stated, Tensor) else {"head": f"logits are {SCALE:g} times the cosine"}
    kind = "linear" if isinstance(bias, Tensor) else "zero-shot"
    said = {"head": f"{kind}, {source}", **about}
    return replace(found, variants=[state], metadata={**found.metadata, **said}, assumed={**found.assumed, **assumed})


def _entries(file: Path) -> State:
    """The tensors of the file by name; one without a name is called weight."""
    if not file.is_file():
        raise UserError(f"head: no file {file}")
    content = read_safetensors(file)[0] if is_safetensors(file) else read_torch_file(file)
    entries = {"weight": content} if isinstance(content, Tensor) else content
    tensors = {n: t for n, t in entries.items() if isinstance(t, Tensor)} if isinstance(entries, dict) else {}
    if len(tensors) == 1 and next(iter(tensors.values())).ndim == 2:
        return {"weight": next(iter(tensors.values()))}
    return tensors


def _weight(entries: State, embedding: int, source: str) -> Tensor:
    weight = entries.get("weight")
    if not (isinstance(weight, Tensor) and weight.ndim == 2 and embedding in weight.shape):
        shapes = ", ".join(f"{ascii(name)[1:-1][:60]} {list(tensor.shape)}" for name, tensor in [*entries.items()][:3])
        raise UserError(f"head: {source} has {shapes or 'no tensors'}, expected weight [classes, {embedding}]")
    return (weight if weight.shape[1] == embedding else weight.T).float().contiguous()
