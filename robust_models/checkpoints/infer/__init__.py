"""From the names and shapes of foreign tensors to an architecture's name and its names for the tensors.

The networks agree with the foreign ones in mathematics (activation placement, shortcuts, strides);
tests/test_oracle_robustness.py, test_oracle_robustbench.py and test_infer_cifar.py compare logits.
"""

from robust_models.checkpoints.infer import chains, deepmind, residual
from robust_models.checkpoints.infer.imagenet import library_network
from robust_models.checkpoints.infer.inception import inception
from robust_models.checkpoints.infer.match import Match
from robust_models.checkpoints.infer.ours import our_network
from robust_models.checkpoints.subtrees import State

__all__ = ["READERS", "Match", "infer"]

# The first that recognises itself counts.
READERS = (
    library_network,
    residual.resnet,
    residual.cifar_resnet,
    residual.preact_resnet,
    residual.wide_resnet,
    residual.robust_wide_resnet,
    residual.resnext,
    deepmind.wide_resnet,
    deepmind.preact_resnet,
    chains.vgg,
    chains.densenet,
    inception,
    our_network,
)


def infer(state: State) -> Match | None:
    """The first family that recognises itself, or None.

    Only what distinguishes the families is compared: the caller compares every name and shape.
    """
    states = [state, renamed] if (renamed := _joined(state)) is not None else [state]
    return next((match for each in states for reader in READERS if (match := reader(each))), None)


def _joined(state: State) -> State | None:
    """The tensors under torchvision's names where a toolkit keeps the head apart from the body, else None.

    mmpretrain (backbone, head.fc); AlexNet and VGG of MadryLab robustness (last_layer).
    """
    if "head.fc.weight" in state and any(name.startswith("backbone.") for name in state):
        return {name.removeprefix("backbone.").removeprefix("head."): tensor for name, tensor in state.items()}
    if {"features.0.weight", "last_layer.weight"} <= state.keys():
        return {name.replace("last_layer.", "classifier.6."): tensor for name, tensor in state.items()}
    return None
