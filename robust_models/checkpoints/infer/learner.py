"""fastai's vision learners on torchvision's ResNets: Sequential(body, head)."""

import re
from dataclasses import replace

import torch

from robust_models.checkpoints.infer.imagenet import library_network
from robust_models.checkpoints.infer.match import MAX_BLOCKS, Match, shape, size
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import NORMALIZERS

_BODY = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def is_fastai(state: State) -> bool:
    """Whether body and head are numbered, and the head begins as fastai's do: pooling, flattening, a batch norm."""
    return "1.2.running_mean" in state and len(shape(state, "1.4.weight")) == 2


def fastai_learner(state: State) -> Match | None:
    """The ResNet of the body, and the head as an option of it; pixels are usually normalised with ImageNet's values."""
    if not is_fastai(state):
        return None
    body = {
        f"{_BODY.get(match[1], match[1])}.{match[2]}": tensor
        for name, tensor in state.items()
        if (match := re.fullmatch(r"0\.(\d)\.(.+)", name))
    }
    linear = [i for i in range(4, 4 * MAX_BLOCKS, 4) if f"1.{i}.weight" in state]
    features = size(state, "1.2.running_mean") // 2
    head = {"fc.weight": torch.empty(1, features, device="meta"), "fc.bias": torch.empty(1, device="meta")}
    match = library_network({**body, **head})
    if match is None or not match.arch.startswith("torchvision:"):
        return None
    hidden = [size(state, f"1.{i}.weight") for i in linear[:-1]]
    options = {**match.options, "fastai_head": {"hidden": hidden, "bias": f"1.{linear[-1]}.bias" in state}}
    return replace(match, state=state, also=(), options=options, normalizer=NORMALIZERS["imagenet"])
