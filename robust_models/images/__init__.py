"""Image sets on disk, of any kind people have: read in batches, written whole, of the same kind and depth.

In memory a batch is NCHW RGB: uint8 (`x_u8`), uint16, or float32 in [0,1]. On disk integers are rounded half to even.
"""

from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.folder import FileImages, FolderImages
from robust_models.images.image_set import Add, ImageGroups, ImageSet, OnError, check_apart, check_groups_out, check_out
from robust_models.images.npy import NpyImages
from robust_models.images.npz import NpzImages, write_npz
from robust_models.images.open import open_image_groups, open_images
from robust_models.images.parquet import ParquetImages
from robust_models.images.pixels import Depth, from_float, to_float, to_u8
from robust_models.images.pt import PtImages
from robust_models.images.tar import TarImages
from robust_models.images.write import write_image_groups, write_images

__all__ = [
    "IMAGE_SUFFIXES",
    "Add",
    "Depth",
    "FileImages",
    "FolderImages",
    "ImageGroups",
    "ImageSet",
    "NpyImages",
    "NpzImages",
    "OnError",
    "ParquetImages",
    "PtImages",
    "TarImages",
    "check_apart",
    "check_groups_out",
    "check_out",
    "from_float",
    "open_image_groups",
    "open_images",
    "to_float",
    "to_u8",
    "write_image_groups",
    "write_images",
    "write_npz",
]
