"""What excites each feature of a classifier, counted over an image set of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor

_FLAT = 1e-7  # a spread this small beside the mean is rounding
_TINY = torch.finfo(torch.float64).tiny


class FeatureStatistics:
    """Sums over the images seen, from which correlations with C classes follow, and for each of D features the `most`
    images that excite it most (of equal ones, those that came first). Memory does not grow with the number of images.
    """

    def __init__(self, dim: int, classes: int, most: int) -> None:
        self.n = 0
        self.most = most
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.squares = torch.zeros(dim, dtype=torch.float64)
        self.by_class = torch.zeros(classes, dim, dtype=torch.float64)
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.strongest = torch.empty(0, dim)  # activations [up to most, D], descending
        self.images = torch.empty(0, dim, dtype=torch.int64)  # and the images that have them

    def update(self, features: Tensor, y: Tensor) -> None:
        """Counts features [n,D] of the next n images, of classes y [n]."""
        features, y = features.detach().cpu().float(), y.cpu()
        wide, is_class = features.double(), F.one_hot(y, len(self.counts)).double()
        self.total += wide.sum(0)
        self.squares += wide.square().sum(0)
        self.by_class += is_class.T @ wide
        self.counts += is_class.sum(0)
        index = torch.arange(self.n, self.n + len(features)).unsqueeze(1).expand_as(features)
        strongest, images = torch.cat([self.strongest, features]), torch.cat([self.images, index])
        order = strongest.sort(dim=0, descending=True, stable=True).indices[: self.most]
        self.strongest, self.images = strongest.gather(0, order), images.gather(0, order)
        self.n += len(features)

    @property
    def mean(self) -> Tensor:
        """[D] float64."""
        return self.total / self.n

    @property
    def std(self) -> Tensor:
        """[D] float64, divided by n."""
        return (self.squares / self.n - self.mean.square()).clamp_min(0).sqrt()

    def correlation(self) -> Tensor:
        """Pearson correlation of being of class c with feature k, [C,D] float64; 0 where either never changes."""
        share = (self.counts / self.n).unsqueeze(1)
        covariance = self.by_class / self.n - share * self.mean
        scale = (share * (1 - share)).sqrt() * self.std
        return torch.where(scale > _FLAT * self.mean.abs(), covariance / scale.clamp_min(_TINY), 0.0)
