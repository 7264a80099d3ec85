"""PyTorch's own files (.pt, .pth: zip, stream and tar) as plain containers and tensors, without running code."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robust_models.checkpoints.torch_format.legacy_stream import read_stream
from robust_models.checkpoints.torch_format.legacy_tar import is_tar, read_tar
from robust_models.checkpoints.torch_format.records import BrokenPickle
from robust_models.checkpoints.torch_format.zip_archive import read_zip
from robust_models.errors import UserError

# What decoding hostile bytes may raise; each becomes one line.
_FAILURES = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError, RuntimeError)
_FAILURES += (MemoryError, NotImplementedError, struct.error, OSError)


def read_torch_file(path: Path, *, lazy: bool = False) -> Any:
    """What torch.save wrote to `path`: containers, numbers, text and CPU tensors; every other object is a Record.

    Numpy's arrays of numbers become tensors, its scalars numbers. Nothing is allocated that the file does not hold.
    lazy: the tensors of a zip are left in the file, each as its StoredTensor; those of older formats are read.
    Raises UserError, one line, for a file that is broken, hostile or something else.
    """
    with _named_failures(path), path.open("rb") as file:
        head = file.read(1024)
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            return read_zip(file, path, lazy=lazy)
        if is_tar(head):
            return read_tar(file, path)
        _refuse_other_kinds(head, path)
        return read_stream(file)


@contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _FAILURES as error:
        reason = ascii(" ".join(str(error).split())[:200])[1:-1]
        kind = "" if isinstance(error, BrokenPickle) else f"{type(error).__name__}: "
        raise UserError(f"ckpt: {path} is broken or cut short ({kind}{reason})") from error


def _refuse_other_kinds(head: bytes, path: Path) -> None:
    """A UserError that names what people save as .pt by mistake."""
    if not head:
        raise UserError(f"ckpt: {path} is empty, not a readable safetensors file or PyTorch file")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"ckpt: {path} is a git-lfs pointer, not the file itself; run `git lfs pull` where it came from"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"ckpt: {path} is an HTML page, not a readable safetensors file or PyTorch file; "
            "download it from a browser or with the site's own tool"
        )
    if not head.startswith(b"\x80"):
        raise UserError(f"ckpt: {path} is not a readable safetensors file or PyTorch file (it starts {head[:8]!a})")
