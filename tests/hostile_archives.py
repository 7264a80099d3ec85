"""Zips, streams and tars as torch.save writes them, but for lies about what lies where, and files cut short."""

import io
import pickle
import struct
import tarfile
import zipfile

from tests.fuzz_unpickle import LEGACY, as_file, as_tar
from tests.hostile_pickles import HUGE, MILLION, name, tensor, text


def _zip(entries: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return buffer.getvalue()


def lying_zips() -> dict[str, bytes]:
    """Archives whose directory does not say what is there."""
    honest = _zip({"a/data.pkl": b"\x80\x02}" + text("w") + tensor(b"K\x04\x85") + b"s.", "a/data/0": bytes(16)})
    end, start = honest.rindex(b"PK\x05\x06"), honest.index(b"PK\x01\x02")
    first, second = start, honest.index(b"PK\x01\x02", start + 1)

    def changed(position: int, format_: str, value: int) -> bytes:
        data = bytearray(honest)
        struct.pack_into("<" + format_, data, position, value)
        return bytes(data)

    def wide(*, position: int, count: int = 2, size: int = end - start, directory: int = start) -> bytes:
        """The end of the directory in its 64-bit form."""
        end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, directory)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, position, 1)
        small = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        return honest[:end] + end64 + locator + small

    extra = struct.pack("<2HQ", 1, 8, HUGE)
    entry = honest[second:end]
    wide_entry = entry[:20] + b"\xff" * 8 + entry[28:30] + struct.pack("<H", len(extra)) + entry[32:] + extra
    wide_file = honest[:second] + wide_entry
    wide_end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(wide_file) - start, start, 0)
    crowded = honest[:start] + honest[first:second] * 200_000
    names = ("../../data.pkl", "/etc/data.pkl", "C:\\a/data.pkl", "a/../../data.pkl", "\0/data.pkl", "\x1b[2J/data.pkl")
    return {
        "directory one byte off": changed(end + 16, "I", start + 1),
        "directory beyond the file": changed(end + 16, "I", 0x7FFFFFFF),
        "directory longer than the file": changed(end + 12, "I", 0x7FFFFFFF),
        "more entries than there are": changed(end + 10, "H", 3),
        "fewer entries than there are": changed(end + 10, "H", 1),
        "no entries": changed(end + 10, "H", 0),
        "entry beyond the file": changed(second + 42, "I", 0x7FFFFFFF),
        "entry larger than the file": changed(second + 20, "I", 0x7FFFFFFF),
        "entries that overlap": changed(second + 42, "I", 0),
        "entry in the middle of another": changed(second + 42, "I", 10),
        "entry of another kind": changed(honest.index(b"PK\x03\x04", 4), "I", 0),
        "header's name of 65,535 bytes": changed(honest.index(b"PK\x03\x04", 4) + 26, "H", 0xFFFF),
        "entry's name of 65,535 bytes": changed(second + 28, "H", 0xFFFF),
        "encrypted entry": changed(second + 8, "H", 1),
        "unknown compression": changed(second + 10, "H", 99),
        "name that is not text": honest.replace(b"a/data/0", b"a/data\xff\xfe"),
        "two entries of one name": _zip({"a/data.pkl": b"N.", "a/data/0": b"", "a/data/1": b""}).replace(
            b"a/data/1", b"a/data/0"
        ),
        "compressed bomb": _zip({"a/data.pkl": b"N0" * 20 * MILLION + b"N."}, compression=zipfile.ZIP_DEFLATED),
        "compressed storage": _zip(
            {"a/data.pkl": tensor(b"K\x04\x85") + b".", "a/data/0": bytes(100 * MILLION)},
            compression=zipfile.ZIP_DEFLATED,
        ),
        "64 bits, 2^62 entries": wide(position=end, count=HUGE),
        "64 bits, directory at 2^62": wide(position=end, directory=HUGE),
        "64 bits, directory of 2^62": wide(position=end, size=HUGE),
        "64 bits, end at 2^62": wide(position=HUGE),
        "64 bits, entry of 2^62": wide_file + wide_end,
        "200,000 entries of one name": crowded
        + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65534, 65534, len(crowded) - start, start, 0),
        "end in a comment": honest[:-2] + struct.pack("<H", 22) + b"PK\x05\x06" + bytes(18),
        "only a header": b"PK\x03\x04" + bytes(30),
        "big-endian": _zip({"a/data.pkl": b"N.", "a/byteorder": b"big"}),
        **{
            f"called {entry!a}": _zip({"x" * len(entry): b"N."}).replace(b"x" * len(entry), entry.encode())
            for entry in names
        },
    }


def lying_streams() -> dict[str, bytes]:
    """Streams whose parts disagree."""
    head = b"".join(pickle.dumps(part, 2) for part in LEGACY)
    pid = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04NtQ"
    elements = struct.pack("<q", 4) + bytes(16)

    def stream(body: bytes = pid + b".", keys: object = ("0",), tail: bytes = elements) -> bytes:
        return head + body + pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2) + tail

    nested = name("torch.storage", "_load_from_bytes")
    deep = nested + b"B" + struct.pack("<I", len(stream())) + stream() + b"\x85R."
    for _ in range(30):
        deep = stream(nested + b"B" + struct.pack("<I", len(deep)) + deep + b"\x85R.", keys=(), tail=b"")
    once = b"B" + struct.pack("<I", len(stream())) + stream() + b"q\x000"
    again = once + (nested + b"h\x00\x85R0") * 20_000 + b"}."
    return {
        "keys of no storage": stream(keys=("0", "1")),
        "a key twice": stream(keys=("0", "0")),
        "no keys": stream(keys=()),
        "keys that are no list": stream(keys={"0": 0}),
        "keys that are lists": stream(keys=[["0"]]),
        "count of 2^62": stream(tail=struct.pack("<q", HUGE) + bytes(16)),
        "count of -4": stream(tail=struct.pack("<q", -4) + bytes(16)),
        "no elements": stream(tail=b""),
        "a storage of two types": stream(pid + pid.replace(b"Float", b"Int") + b"\x86."),
        "a storage declared larger than the file": stream(pid.replace(b"K\x04", b"J\xff\xff\xff\x7f") + b"."),
        "10,000 storages of the file's size": stream(
            b"".join(pid.replace(text("0"), text(str(i))) + b"0" for i in range(10_000)) + b"N."
        ),
        "a part beyond its storage": stream(pid.replace(b"Nt", text("p") + b"K\x02K\x04\x87t") + b"."),
        "another protocol": pickle.dumps(LEGACY[0], 2) + pickle.dumps(1002, 2) + b"N.",
        "streams in streams": b"\x80\x02}"
        + text("a")
        + nested
        + b"B"
        + struct.pack("<I", len(deep))
        + deep
        + b"\x85Rs.",
        "a stream read again and again": b"\x80\x02" + again,
    }


def lying_tars() -> dict[str, bytes]:
    """Archives as of PyTorch 0.1 with members that are links, oversized, too many or absent."""
    honest = as_file(b"t" + b"]" + text("8") + b"Qa.")

    def field(position: int, value: bytes) -> bytes:
        return honest[:position] + value + honest[position + len(value) :]

    def of_type(kind: bytes, **options) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
            for member in ("storages", "tensors", "pickle"):
                info = tarfile.TarInfo(member)
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info)
        return buffer.getvalue()

    longer = tarfile.TarInfo("x")
    longer.pax_headers = {"size": "-1", "path": "../../x" * 50}
    pax = longer.tobuf(tarfile.PAX_FORMAT)[: 3 * 512]  # its header, the pairs, and the header of x
    huge_count = {"storages": pickle.dumps(HUGE, 2), "tensors": b"", "pickle": b""}
    dimensions = pickle.dumps(1, 2) + b"\x80\x02K\x08NN\x87." + struct.pack("<i4x", 2**31 - 1)
    none = pickle.dumps(0, 2) + pickle.dumps([], 2)
    return {
        "symbolic links": of_type(tarfile.SYMTYPE),
        "hard links": of_type(tarfile.LNKTYPE),
        "devices": of_type(tarfile.BLKTYPE),
        "folders": of_type(tarfile.DIRTYPE),
        "member of 8 GiB": field(124, b"77777777777\0"),
        "member of -1 bytes": field(124, b"\xff" * 12),
        "member of 2^80 bytes": field(124, b"\x80" + b"\x7f" * 11),
        "member of minus octal": field(124, b"-0000001000\0"),
        "negative size after a name of its own": pax + honest,
        "10,000 headers before the first member": pax * 3_334 + honest,
        "endless long names": (tarfile.TarInfo("a" * 300).tobuf(tarfile.GNU_FORMAT)) * 2_000,
        "20,000 members": as_tar({str(i): b"" for i in range(20_000)}),
        "path upwards": as_tar({"../../storages": b"", "/tensors": b"", "pickle": b"N."}),
        "2^62 storages": as_tar(huge_count),
        "storages without end": as_tar({"storages": pickle.dumps(100_000, 2), "tensors": b"", "pickle": b""}),
        "2^31 dimensions": as_tar({"storages": none, "tensors": dimensions, "pickle": text("8") + b"Q."}),
        "tensor's key of 4,000 digits": as_file(b"t" + text("9" * 4_000) + b"Q."),
        "tensor's key upwards": as_file(b"t" + text("../8") + b"Q."),
        "checksum only": bytes(257) + b"ustar" + bytes(250),
    }


def cut_short() -> dict[str, bytes]:
    """Honest files that ended too early, joined with another, or of one repeated byte."""
    honest = {kind: as_file(kind.encode() + b"]" + text("8") + b"Qa.") for kind in "t"}
    honest["z"] = as_file(b"z" + tensor(b"K\x04\x85") + b".")
    cut = {f"{kind} at {part}/8": data[: len(data) * part // 8] for kind, data in honest.items() for part in (1, 3, 5)}
    return {
        **cut,
        "zeros": bytes(10_000),
        "one byte": b"\x80",
        "a zip in a tar": as_tar({"archive.zip": honest["z"]}),
        "a tar after a pickle": b"\x80\x02N." + honest["t"],
        "marks": b"\x80\x02" + b"(" * 10_000,
        "a line without end": b"\x80\x02c" + b"a" * 10 * MILLION,
    }
