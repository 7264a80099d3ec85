"""Which pixels are to be filled in: a mask per image, or one for all of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from refine.synthesis.inputs import read
from robust_models.errors import UserError
from robust_models.images import IMAGE_SUFFIXES, ImageSet, open_images, to_float
from robust_models.images.codec import decode
from robust_models.images.folder_files import read_file

Masks = Callable[[Tensor], Tensor]  # rows [n] -> [n,1,H,W] float on the CPU: 1 where a pixel is to be filled in, else 0
_AT_ONCE = 256  # images


def rectangle(text: str, size: tuple[int, int]) -> Masks:
    """ "top,left,height,width" in pixels -> the mask of all images of `size` (height, width)."""
    try:
        top, left, height, width = (int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"rectangle: {text!r} is not top,left,height,width: four whole numbers of pixels") from None
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise UserError(f"rectangle: {text} does not lie in images of {size[1]}x{size[0]} (top,left,height,width)")
    mask = torch.zeros(1, 1, *size)
    mask[..., top : top + height, left : left + width] = 1
    return one_for_all(mask, "rectangle")


def centred(side: int, size: tuple[int, int]) -> Masks:
    """A square hole in the middle of images of `size`."""
    if side >= min(size):
        raise UserError(f"hole: {side} pixels leave nothing of images of {size[1]}x{size[0]}; give fewer")
    return rectangle(f"{(size[0] - side) // 2},{(size[1] - side) // 2},{side},{side}", size)


def read_masks(path: Path, images: ImageSet) -> Masks:
    """Masks from an image file or an image set, one mask or as many as there are images; white is to be filled in."""
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        pixels = torch.from_numpy(decode(read_file(path), str(path)).copy()).permute(2, 0, 1).unsqueeze(0)
        _check_size(path, (pixels.shape[2], pixels.shape[3]), images)
        return one_for_all(_white(pixels), f"mask: {path}")
    masks = open_images(path)
    _check_size(path, masks.size, images)
    if len(masks) == 1:
        return one_for_all(_white(masks.read(0, 1)), f"mask: {path}")
    if len(masks) != len(images):
        raise UserError(f"mask: {path} holds {len(masks)} masks for {len(images)} images; give one, or one for each")
    for part, pixels in masks.batches(_AT_ONCE):
        for i, mask in enumerate(_white(pixels), start=part.start):
            _check_known(mask, f"mask: {path}, mask {i}")

    return lambda rows: _white(read(masks, rows))


def one_for_all(mask: Tensor, source: str) -> Masks:
    """The same mask [1,1,H,W] for every image; `source` begins a message."""
    _check_known(mask, source)
    return lambda rows: mask.expand(len(rows), -1, -1, -1)


def _white(pixels: Tensor) -> Tensor:
    """Pixels of any depth [n,3,H,W] -> 1 where the channels' mean is at least a half, [n,1,H,W]."""
    return (to_float(pixels).mean(dim=1, keepdim=True) >= 0.5).float()


def _check_size(path: Path, size: tuple[int, int], images: ImageSet) -> None:
    if size != images.size:
        raise UserError(
            f"mask: {path} is {size[1]}x{size[0]}, the images are {images.size[1]}x{images.size[0]}; they must be equal"
        )


def _check_known(mask: Tensor, source: str) -> None:
    if not mask.any():
        raise UserError(f"{source} has no white pixel; white is what is to be filled in")
    if mask.all():
        raise UserError(f"{source} is white throughout; black is what is known of the image")
