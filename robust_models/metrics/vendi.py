"""Vendi score: the effective number of different images in a set (Friedman and Dieng 2023, arXiv:2210.02410)."""

import numpy as np
import torch
from torch import Tensor


def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the cosines between rows of features [N,D]; 1 to min(N, D).

    1 where all images are alike, N where no two have anything in common. It needs no reference, so noise scores high.
    ValueError for a row of zeros, which has no direction.
    """
    rows = features.double()
    lengths = rows.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ValueError(f"features of image {int((lengths[:, 0] == 0).nonzero()[0])} are all 0")
    rows = rows / lengths
    n, dim = rows.shape
    gram = (rows @ rows.T if n <= dim else rows.T @ rows) / n  # the same eigenvalues but for zeros
    values = torch.linalg.eigvalsh(gram).clamp(min=0).cpu().numpy()
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))
