"""FFCV's `.beton` files, read and written without FFCV."""

from robust_models.datasets.beton.reader import HEADER, IMAGE, JPEG, RAW, BetonStore, open_beton
from robust_models.datasets.beton.writer import write_beton

__all__ = ["HEADER", "IMAGE", "JPEG", "RAW", "BetonStore", "open_beton", "write_beton"]
