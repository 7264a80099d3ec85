"""Coverage-guided fuzzing of the checkpoint readers with atheris (pip install atheris), from tests/fuzz_corpus.

    python -m tests.fuzz_unpickle FOUND tests/fuzz_corpus -max_total_time=600 -timeout=20 -rss_limit_mb=3000

An input's first byte says how the rest is used: as a whole file, as the pickle of a zip, of a stream, of a tar.
A finding: another exception than UserError, a message of two lines, or an audit event of running or opening something.
"""

import codecs
import io
import pickle
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})  # torch.serialization's magic, protocol, system
QUIET = ("object.", "sys._getframe", "marshal.", "builtins.id", "gc.")  # events that run nothing
ELEMENTS = bytes(range(16))


def as_file(data: bytes) -> bytes:
    """The file that an input stands for."""
    kind, rest = data[:1], data[1:]
    if kind == b"z":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/data.pkl", rest)
            archive.writestr("a/data/0", ELEMENTS)
        return buffer.getvalue()
    if kind == b"s":
        tail = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + ELEMENTS
        return b"".join(pickle.dumps(part, 2) for part in LEGACY) + rest + tail
    if kind == b"t":
        storages = pickle.dumps(1, 2) + b"\x80\x02K\x07X\x03\x00\x00\x00cpuctorch\nFloatStorage\n\x87."
        storages += struct.pack("<q", 4) + ELEMENTS + pickle.dumps([], 2)
        tensors = pickle.dumps(1, 2) + b"\x80\x02K\x08K\x07ctorch\nFloatTensor\n\x87."
        tensors += struct.pack("<i4x3q", 1, 4, 1, 0)
        return as_tar({"storages": storages, "tensors": tensors, "pickle": rest})
    return rest


def as_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def check(content: bytes, path: Path, read: Callable[[Path], Any]) -> str | None:
    """Reads a file of that content; its message, or None where it was read. AssertionError for anything else."""
    from robust_models.errors import UserError  # not before atheris has instrumented the readers

    path.write_bytes(content)
    events: list[str] = []
    _watched[:] = [events, str(path)]
    try:
        read(path)
        message = None
    except UserError as error:
        message = str(error)
    finally:
        _watched.clear()
    assert not events, f"the file made things happen: {events[:5]}"
    assert message is None or (message.startswith("ckpt: ") and message.isprintable()), f"not one line: {message!r}"
    return message


_watched: list[Any] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _watched and not event.startswith(QUIET) and not (event == "open" and str(args[0]) == _watched[1]):
        _watched[0].append(f"{event} {args!r:.100}")


def watch() -> None:
    """From now on `check` sees what Python does (imports, calls of the system, opened files); cannot be undone."""
    for codec in ("raw_unicode_escape", "latin_1", "ascii", "utf_8"):
        codecs.lookup(codec)  # Python imports a codec when it is first used
    sys.addaudithook(_watch)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["robust_models.checkpoints", "pickletools"]):
        from robust_models.checkpoints.torch_format.torch_file import read_torch_file
    watch()
    path = Path(tempfile.mkdtemp()) / "file.pt"
    atheris.Setup(sys.argv, lambda data: check(as_file(data), path, read_torch_file))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
