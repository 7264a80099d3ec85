"""CIFAR networks of other people, by the names and shapes of their tensors."""

from robust_models.checkpoints.infer import deepmind, residual
from robust_models.checkpoints.infer.densenet import densenet
from robust_models.checkpoints.infer.inception import inception
from robust_models.checkpoints.infer.vgg import vgg

READERS = (
    residual.resnet,
    residual.preact_resnet,
    residual.wide_resnet,
    residual.robust_wide_resnet,
    residual.resnext,
    deepmind.wide_resnet,
    deepmind.preact_resnet,
    vgg,
    densenet,
    inception,
)
