"""DeepMind's robust CIFAR networks (Gowal et al. 2020, arXiv:2010.03593) and what was trained with their code.

Their forward normalises with constants that no file holds, and the published ones use SiLU, which they call Swish.
"""

from robust_models.checkpoints.infer.match import Depths, Match, depths, renamed, shape, size
from robust_models.checkpoints.infer.residual import wide_name
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import Normalizer

# By classes, with the digits that their code has.
_NORMALIZERS = {
    10: Normalizer((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: Normalizer((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_PREACT_DEPTHS: dict[Depths, int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
_BLOCK = {"batchnorm_0": "preact.0", "batchnorm_1": "branch.1", "shortcut": "shortcut"}
_WIDE_BLOCK = {**_BLOCK, "conv_0": "branch.0", "conv_1": "branch.3"}
_PREACT_BLOCK = {**_BLOCK, "conv_2d_1": "branch.0", "conv_2d_2": "branch.3"}


def wide_resnet(state: State) -> Match | None:
    """Their WideResNets, of any depth and width."""
    widths = [size(state, f"layer.{stage}.block.0.conv_0.weight") for stage in (0, 1, 2)]
    name = wide_name(depths(state, r"layer\.(\d)\.block\.(\d{1,4})\.conv_0\.weight", first=0), widths)
    if name is None or shape(state, "init_conv.weight") != (16, 3, 3, 3):
        return None
    outer = {"init_conv": "stem", "batchnorm": "pool.0", "logits": "head"}
    ours = renamed(state, outer, r"layer\.(\d)\.block\.(\d{1,4})\.(.+)", _WIDE_BLOCK)
    return _match(f"dm_{name}", ours, state)


def preact_resnet(state: State) -> Match | None:
    """Their PreActResNet-18 and -34."""
    depth = _PREACT_DEPTHS.get(depths(state, r"layer_(\d)\.(\d{1,4})\.conv_2d_1\.weight", first=0))
    if depth is None or shape(state, "conv_2d.weight") != (64, 3, 3, 3):
        return None
    outer = {"conv_2d": "stem", "batchnorm": "pool.0", "logits": "head"}
    ours = renamed(state, outer, r"layer_(\d)\.(\d{1,4})\.(.+)", _PREACT_BLOCK)
    return _match(f"dm_preact_resnet{depth}", ours, state)


def _match(arch: str, ours: State, state: State) -> Match:
    normalizer = _NORMALIZERS.get(size(state, "logits.weight"))
    return Match(arch, ours, activation="silu", normalizer=normalizer)
