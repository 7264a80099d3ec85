"""What kind of network a file holds that none of the readers knows, so that a person knows why and what to do."""

from robust_models.checkpoints.infer.clip_encoder import encoder_of
from robust_models.checkpoints.infer.learner import is_fastai
from robust_models.checkpoints.subtrees import State

_GIVE_HEAD = (
    "give --head FILE (in Python: head=) with the classes' text embeddings [classes, embedding], or with weight and "
    "bias of a linear layer"
)
_OPENAI_ONLY = "of which only OpenAI's ViTs and ResNets are read"
# The start of a tensor's name, and the kind of network that has it.
_KINDS = (
    ("visual.trunk.", f"an image encoder of open_clip built on a network of timm, {_OPENAI_ONLY}"),
    ("trunk.patch_embed.", f"an image encoder of open_clip built on a network of timm, {_OPENAI_ONLY}"),
    ("trunk.stem.", f"an image encoder of open_clip built on a network of timm, {_OPENAI_ONLY}"),
    (
        "vision_model.",
        "an image encoder of transformers, of which CLIP's with a projection and folders of classifiers are read",
    ),
)


def kind_of_unread(state: State) -> str | None:
    """The kind in words, with what can be done; None: no kind that is known."""
    if encoder_of(state) is not None and "head.weight" not in state:
        return f"an image encoder of CLIP, without classes; {_GIVE_HEAD}"
    if is_fastai(state):
        return "a learner of fastai whose body is none of torchvision's ResNets; pass --arch package.module:function"
    for start, kind in _KINDS:
        if any(name.startswith(start) for name in state):
            return f"{kind}; pass --arch package.module:function"
    if any(n.startswith("backbone.") for n in state) and any(n.startswith("head.") for n in state):
        return (
            "a backbone and a head under the names of mmpretrain, of which ResNets, ViTs and ConvNeXts are read; "
            "pass --arch package.module:function"
        )
    return None
