"""Computing in blocks of a fixed number of images, so that an image's result does not depend on how many came with it.

Convolutions and matrix products take other kernels, with other rounding, for other numbers of images: batches of 1, 7
and 64 differ in the last bits. In blocks of one size, the short ones filled up, they do not (bit-equal on the CPU in
float32), and torch.compile meets a single shape.
"""

import torch
from torch import Tensor

_CPU_PIXELS = 2**16  # where images/s of small networks level off: 64 images of 32x32, 1 of 256x256


def block_size(device: torch.device, image_size: int, batch_size: int) -> int:
    """Images per block: on a GPU the batch size asked for; on the CPU what suits the classifier's image size."""
    if device.type != "cpu":
        return batch_size
    return max(1, min(64, _CPU_PIXELS // image_size**2))


def filled(batch: Tensor, size: int) -> Tensor:
    """batch [n,...] with its last row repeated until there are `size`."""
    missing = size - len(batch)
    return batch if missing == 0 else torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
