"""A classifier of several views of an image: crops, mirrored copies and noise, as if it were moved a little."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError, none_of
from robust_models.smoothing import Averaged

SMALLEST_CROP = 0.7  # side of a crop, share of the image's
NOISE = 0.05  # standard deviation, pixels in [0,1]


def _cropped(theta: Tensor, generator: torch.Generator) -> Tensor:
    """A square window somewhere inside, resized to the whole."""
    side = SMALLEST_CROP + (1 - SMALLEST_CROP) * torch.rand((), generator=generator)
    place = (1 - side) * (2 * torch.rand(2, generator=generator) - 1)
    window = torch.cat([side * torch.eye(2), place.unsqueeze(1)], dim=1)
    return torch.cat([theta[:, :2] @ window[:, :2], theta[:, :2] @ window[:, 2:] + theta[:, 2:]], dim=1)


def _flipped(theta: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored or not."""
    sign = 1.0 - 2.0 * float(torch.randint(2, (), generator=generator))
    return theta * torch.tensor([sign, 1.0]).unsqueeze(1)


# In PyTorch's coordinates, which run from -1 to 1.
_MOVES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"crop": _cropped, "flip": _flipped}
KINDS = (*_MOVES, "noise")


class Viewed(Averaged):
    """The classifier of the mean soft-max over `draws` views of each image, of which the first is the image itself.

    A gradient that all views share changes what the image shows, not single pixels that one view happens to see: so
    images are made with networks whose own gradient is noise, and with image-text models.

    kinds  of KINDS: crop (70 to 100 % of the side, bilinear), flip (left and right), noise (standard deviation 0.05).
    """

    thetas: Tensor

    def __init__(self, base: RobustClassifier, draws: int, kinds: Sequence[str] = KINDS, seed: int = 0) -> None:
        check_views(draws, kinds)
        super().__init__(base, draws, seed)
        self.kinds = tuple(kinds)
        generator = torch.Generator().manual_seed(seed)
        thetas = [torch.eye(2, 3) for _ in range(draws - 1)]
        for kind, move in _MOVES.items():
            if kind in kinds:
                thetas = [move(theta, generator) for theta in thetas]
        self.register_buffer("thetas", torch.stack(thetas).to(base.device), persistent=False)

    def copies(self, x: Tensor) -> Tensor:
        """[N*draws,3,H,W], each image and its other views."""
        n, _, height, width = x.shape
        views = x[:, None].expand(-1, self.draws - 1, -1, -1, -1)
        if {*_MOVES} & {*self.kinds}:
            thetas = self.thetas.to(x.dtype).repeat(n, 1, 1)
            grid = F.affine_grid(thetas, [len(thetas), 3, height, width], align_corners=False)
            moved = F.grid_sample(views.flatten(0, 1), grid, padding_mode="reflection", align_corners=False)
            views = moved.view_as(views)
        if "noise" in self.kinds:
            views = views + NOISE * self.noise(x, self.draws - 1)
        return torch.cat([x[:, None], views], dim=1).flatten(0, 1)


def check_views(draws: int, kinds: Sequence[str]) -> None:
    """UserError for views that are none."""
    if draws < 2:
        raise UserError(f"views: {draws} is less than 2, of which the first is the image itself")
    if not kinds:
        raise UserError(f"view_kinds: names none; give some of {', '.join(KINDS)}")
    if strange := next((kind for kind in kinds if kind not in KINDS), None):
        raise UserError(f"view_kinds: {none_of(strange, KINDS)}")
