"""The same networks under other toolkits' names: their tensors under the names of torchvision or timm."""

import re
from collections.abc import Iterator, Sequence

from robust_models.checkpoints.subtrees import State

_Rules = Sequence[tuple[str, str]]  # a pattern at the start of a name, and what stands there instead

# mmpretrain (mmcls): a backbone, and a head whose linear layer is called by the kind of head.
_MM: _Rules = ((r"backbone\.", ""), (r"head\.(?:layers\.)?(?:fc|head)\.", "fc."))
_MM_VIT: _Rules = (
    (r"head\.(?:layers\.)?(?:fc|head)\.", "head."),
    (r"backbone\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"backbone\.layers\.(\d+)\.ln(\d)\.", r"blocks.\1.norm\2."),
    (r"backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"backbone\.layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"backbone\.layers\.(\d+)\.", r"blocks.\1."),
    (r"backbone\.(?:ln1|norm1)\.", "norm."),
    (r"backbone\.", ""),
)
_DOWNSAMPLING: _Rules = ((r"downsample_layers\.0\.", "stem."), (r"downsample_layers\.(\d)\.", r"stages.\1.downsample."))
_MM_CONVNEXT: _Rules = (
    (r"head\.(?:layers\.)?(?:fc|head)\.", "head.fc."),
    *((f"backbone\\.{pattern}", new) for pattern, new in _DOWNSAMPLING),
    (r"backbone\.stages\.(\d)\.(\d+)\.depthwise_conv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"backbone\.stages\.(\d)\.(\d+)\.pointwise_conv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"backbone\.stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"backbone\.norm3\.", "head.norm."),
)
# The authors' own ConvNeXt (facebookresearch).
_CONVNEXT: _Rules = (
    *_DOWNSAMPLING,
    (r"stages\.(\d)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d)\.(\d+)\.pwconv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"norm\.", "head.norm."),
    (r"head\.", "head.fc."),
)
# AlexNet and VGG of MadryLab robustness keep the last layer apart.
_ROBUSTNESS: _Rules = ((r"last_layer\.", "classifier.6."),)

# Tensors that only one toolkit has together, and how its names are to be changed.
_TOOLKITS: tuple[tuple[frozenset[str], _Rules], ...] = (
    (frozenset({"backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"}), _MM_VIT),
    (frozenset({"backbone.downsample_layers.0.0.weight"}), _MM_CONVNEXT),
    (frozenset({"head.fc.weight", "backbone.conv1.weight"}), _MM),
    (frozenset({"head.fc.weight", "backbone.stem.conv1.weight"}), _MM),
    (frozenset({"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"}), _CONVNEXT),
    (frozenset({"features.0.weight", "last_layer.weight"}), _ROBUSTNESS),
)


def spellings(state: State) -> Iterator[State]:
    """The tensors as the file names them, then under the names of torchvision or timm where a toolkit has its own."""
    yield state
    for names, rules in _TOOLKITS:
        if names <= state.keys():
            yield {_renamed(name, rules): tensor for name, tensor in state.items()}
            return


def _renamed(name: str, rules: _Rules) -> str:
    """By the first rule that fits; a name that none fits stays as it is."""
    for pattern, new in rules:
        changed, count = re.subn(f"^(?:{pattern})", new, name)
        if count:
            return changed
    return name
