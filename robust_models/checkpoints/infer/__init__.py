"""From the names and shapes of foreign tensors to an architecture's name and its names for the tensors.

The networks agree with the foreign ones in mathematics (activation placement, shortcuts, strides);
tests/test_oracle_robustness.py, test_oracle_robustbench.py and test_infer_cifar.py compare logits.
"""

from robust_models.checkpoints.infer import cifar, imagenet, ours
from robust_models.checkpoints.infer.match import Match
from robust_models.checkpoints.layouts import State

__all__ = ["Match", "infer"]


def infer(state: State) -> Match | None:
    """The first family that recognises itself, or None.

    Only what tells the families apart is looked at: the caller compares every name and shape.
    """
    for reader in (*imagenet.READERS, *cifar.READERS, *ours.READERS):
        if match := reader(state):
            return match
    return None
