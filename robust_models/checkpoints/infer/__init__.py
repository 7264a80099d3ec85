"""From the names and shapes of foreign tensors to an architecture's name and its names for the tensors.

The networks agree with the foreign ones in mathematics (activation placement, shortcuts, strides);
tests/test_oracle_robustness.py, test_oracle_robustbench.py and test_infer_cifar.py compare logits.
"""

from robust_models.checkpoints.infer import chains, deepmind, residual
from robust_models.checkpoints.infer.clip_encoder import clip_classifier
from robust_models.checkpoints.infer.imagenet import library_network
from robust_models.checkpoints.infer.inception_v3 import inception
from robust_models.checkpoints.infer.learner import fastai_learner
from robust_models.checkpoints.infer.match import Match
from robust_models.checkpoints.infer.own_networks import our_network
from robust_models.checkpoints.infer.stem import conv_stem
from robust_models.checkpoints.infer.toolkits import spellings
from robust_models.checkpoints.subtrees import State

__all__ = ["READERS", "Match", "infer"]

# The first that recognises itself counts.
READERS = (
    library_network,
    conv_stem,
    fastai_learner,
    clip_classifier,
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
    return next((match for each in spellings(state) for reader in READERS if (match := reader(each))), None)
