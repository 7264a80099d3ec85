"""What stands in a hole before the steps begin: one colour, or the smoothest continuation of what is known."""

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import spsolve
from torch import Tensor


def filled_with_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x [N,3,H,W] where mask [N,1,H,W] is 0; where it is 1, the mean of each channel over the image's known pixels."""
    known = 1 - mask
    mean = (x * known).sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True)
    return x * known + mean * mask


def filled_smoothly(x: Tensor, mask: Tensor) -> Tensor:
    """x [N,3,H,W] where mask [N,1,H,W] is 0; where it is 1, each pixel is the mean of its neighbours (Laplace's
    equation, solved exactly; beyond the image's edge there are none)."""
    return torch.stack([_continued(*one) for one in zip(x, mask[:, 0], strict=True)])


def _continued(x: Tensor, mask: Tensor) -> Tensor:
    hole = mask.flatten().bool().numpy()
    if not hole.any():
        return x
    rows = csr_array(laplacian(_grid(*mask.shape)))[hole]
    values = x.flatten(1).double().numpy().T.copy()
    values[hole] = spsolve(rows[:, hole].tocsc(), -(rows[:, ~hole] @ values[~hole]))
    return torch.from_numpy(values.T).reshape(x.shape).to(x.dtype)


def _grid(height: int, width: int) -> coo_array:
    """Which pixels are neighbours, as a graph over height * width of them."""
    number = np.arange(height * width).reshape(height, width)
    first = np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()])
    second = np.concatenate([number[:, 1:].ravel(), number[1:].ravel()])
    ones = np.ones(2 * len(first))
    return coo_array((ones, (np.r_[first, second], np.r_[second, first])), shape=(number.size, number.size))
