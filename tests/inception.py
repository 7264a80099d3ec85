"""A whole Inception network of random weights, in a file that the toolkit takes for the real one."""

from pathlib import Path

import torch

from robust_models.features.inception_network import build


def write_random_weights(path: Path) -> None:
    """pytorch-fid's state dict; activations keep their size through the depth, so that every layer matters."""
    draws = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in build("Mixed_7c").state_dict().items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(tensor.shape, generator=draws) * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
        else:
            state[name] = torch.rand(tensor.shape, generator=draws) + 0.5
    state["fc.weight"] = torch.randn(1008, 2048, generator=draws) * 0.01
    state["fc.bias"] = torch.randn(1008, generator=draws)
    torch.save(state, path)
