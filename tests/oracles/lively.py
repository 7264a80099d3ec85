"""For the writers, which see nothing of this project's packages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lively(network: nn.Module) -> nn.Module:
    """With signals that reach the logits and batch norms that have seen something, in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            for scale in (module.weight, module.running_var):
                nn.init.uniform_(scale, 0.5, 1.5)
            for shift in (module.bias, module.running_mean):
                nn.init.normal_(shift, std=0.2)
    return network.eval()


def two_images(size: int) -> Tensor:
    """[2,3,size,size] in [0,1]: noise of single pixels, and of large spots."""
    generator = torch.Generator().manual_seed(1)
    spots = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator), size, mode="bilinear")
    return torch.cat([torch.rand(1, 3, size, size, generator=generator), spots])
