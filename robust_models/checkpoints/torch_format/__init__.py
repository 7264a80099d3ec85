"""PyTorch's own file formats of all ages, read without running anything in them.

One function reads; all else in this folder is private to it (tests/test_torch_format_door.py).
"""

from robust_models.checkpoints.torch_format.records import BrokenPickle, Record
from robust_models.checkpoints.torch_format.tensors import StoredTensor
from robust_models.checkpoints.torch_format.torch_file import read_torch_file

__all__ = ["BrokenPickle", "Record", "StoredTensor", "read_torch_file"]
