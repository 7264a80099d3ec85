"""Which kind of program a file is, by its outermost structure: nothing in it is run, unpickled or unpacked.

The zip's directory and the fields of the ONNX message are walked in bounded steps, whatever sizes the file declares.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

Kind = Literal["torchscript", "torch.export", "onnx"]

MAX_DIRECTORY_BYTES = 32 << 20
MAX_ENTRIES = 100_000  # of a zip's directory
MAX_FIELDS = 100_000  # of an ONNX message's outermost level

# One folder (the archive's name) before the entries of PyTorch's writers; none in torch.export's before 2.8.
_TORCHSCRIPT = re.compile(r"[^/]*/(constants\.pkl|code/.+\.py)")
_EXPORT = re.compile(r"[^/]*/archive_format|(.*/)?serialized_exported_program\.json")


def kind_of(path: Path) -> Kind | None:
    """The kind of program in the file, None where it is none or is cut short. Never raises for what the file holds."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return "onnx" if _is_onnx(file) else None
        for name in _zip_names(file):
            if _TORCHSCRIPT.fullmatch(name):
                return "torchscript"
            if _EXPORT.fullmatch(name):
                return "torch.export"
    return None


def _zip_names(file: BinaryIO) -> Iterator[str]:
    """Names in the zip's directory; `zipfile` would build an object for each of any number of entries."""
    directory = _directory(file)
    start = 0
    for _ in range(MAX_ENTRIES):
        if directory[start : start + 4] != b"PK\x01\x02" or len(directory) < start + 46:
            return
        name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<3H", directory, start + 28)
        yield directory[start + 46 : start + 46 + name_bytes].decode("utf-8", "replace")
        start += 46 + name_bytes + extra_bytes + comment_bytes


def _directory(file: BinaryIO) -> bytes:
    """The zip's central directory, at most its first MAX_DIRECTORY_BYTES; empty where the file's end names none."""
    size = file.seek(0, 2)
    tail_start = max(0, size - 65_557)  # the end record and the longest comment
    file.seek(tail_start)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return b""
    length, offset = struct.unpack_from("<2L", tail, end + 12)
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\x06\x07":  # zip64, which PyTorch writes for every size
        (record,) = struct.unpack_from("<Q", tail, end - 12)
        file.seek(min(record, size))
        entry = file.read(56)
        if len(entry) < 56 or entry[:4] != b"PK\x06\x06":
            return b""
        length, offset = struct.unpack_from("<2Q", entry, 40)
    file.seek(min(offset, size))
    return file.read(min(length, MAX_DIRECTORY_BYTES))


_VARINT, _BYTES = 0, 2
# onnx.proto's ModelProto: number -> wire type. Names: ir_version, producer_name, producer_version, domain,
# model_version, doc_string, graph, opset_import, metadata_props, training_info, functions, configuration.
_MODEL_FIELDS = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES}
_MODEL_FIELDS |= {14: _BYTES, 20: _BYTES, 25: _BYTES, 26: _BYTES}
_IR_VERSION, _GRAPH = 1, 7
_MAX_IR_VERSION = 1_000


def _is_onnx(file: BinaryIO) -> bool:
    """Protobuf has no magic bytes: every outermost field must be one of ModelProto's and the last end with the file."""
    size = file.seek(0, 2)
    file.seek(0)
    seen: set[int] = set()
    for _ in range(MAX_FIELDS):
        if file.tell() == size:
            return seen >= {_IR_VERSION, _GRAPH}
        tag, value = _varint(file), _varint(file)
        if tag is None or value is None or _MODEL_FIELDS.get(tag >> 3) != tag & 7:
            return False
        if tag >> 3 == _IR_VERSION and not 1 <= value <= _MAX_IR_VERSION:
            return False
        if tag & 7 == _BYTES:
            if value > size - file.tell():
                return False
            file.seek(value, 1)
        seen.add(tag >> 3)
    return False


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
