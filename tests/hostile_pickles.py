"""Small pickles that a careless reader would copy, hash, print, walk or allocate without end."""

import struct

MILLION = 1_000_000
HUGE = 1 << 62


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def tensor(size: bytes, key: str = "0", count: bytes = b"K\x04", stride: bytes = b"K\x01\x85") -> bytes:
    """A float tensor's pickle, by the opcodes of its size tuple."""
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + count + b"tQ"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + size + stride + b"\x89}tR"


def multiplying_pickles() -> dict[str, bytes]:
    """Name and content of each."""
    doubled = b")" + b"2\x86" * 60  # a tuple of two of a tuple of two of ..., 2^60 leaves
    many = b"](" + b"K\x01" * 10_000 + b"e" + b"q\x00"
    pairs = b"](" + b"K\x01K\x02\x86" * 10_000 + b"e" + b"q\x00"
    expanded = tensor(b"J" + struct.pack("<i", MILLION) + b"\x85", stride=b"K\x00\x85") + b"q\x00"
    dtype = name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
    array = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    storage = b"(" + text("storage") + name("torch", "FloatStorage")

    def again(function: bytes, args: bytes = b"h\x00\x85") -> bytes:
        """That function called 100,000 times."""
        return (function + args + b"R0") * 100_000 + b"N."

    return {
        "doubled tuple": doubled + b".",
        "doubled tuple as a key": b"}" + doubled + b"Ns.",
        "doubled tuple as a persistent id": doubled + b"Q.",
        "doubled tuple as a storage's key": storage + doubled + text("cpu") + b"K\x04tQ.",
        "doubled tuple as a storage's count": storage + text("0") + text("cpu") + doubled + b"tQ.",
        "doubled tuple as a storage's type": b"(" + text("storage") + doubled + text("0") + text("cpu") + b"K\x04tQ.",
        "doubled tuple as a size": tensor(doubled) + b".",
        "doubled tuple as keywords": name("a", "b") + b")" + doubled + b"\x92.",
        "long tuple as a key, again and again": b"(" + b"K\x01" * 100_000 + b"tq\x000}" + b"h\x00Ns" * 100_000 + b".",
        "colliding tuples as keys": b"}"
        + b"".join(b"K\x01M" + struct.pack("<H", i) + b"\x86Ns" for i in range(60_000))
        + b".",
        "a list made a dict again and again": pairs + again(name("collections", "OrderedDict")),
        "a list made a set again and again": many + again(name("builtins", "set")),
        "a list made a size again and again": many + again(name("torch", "Size")),
        "text encoded again and again": text("a" * 100_000) + b"q\x00" + again(name("_codecs", "encode")),
        "a tensor made a size": expanded + b"0" + name("torch", "Size") + b"h\x00\x85R.",
        "a tensor made a set": expanded + b"0" + name("builtins", "set") + b"h\x00\x85R.",
        "a tensor made a dict": expanded + b"0" + name("collections", "OrderedDict") + b"h\x00\x85R.",
        "a tensor as a persistent id": expanded + b"Q.",
        "a list in itself": b"]q\x00h\x00a.",
        "a dict in itself": b"}q\x00" + text("state_dict") + b"h\x00s.",
        "a record in itself": name("a", "b") + b")\x81q\x00}" + text("c") + b"h\x00sb.",
        "400,000 lists in each other": b"]" * 400_000 + b"a" * 399_999 + b".",
        "dicts in each other": (b"}" + text("model")) * 100_000 + b"N" + b"s" * 100_000 + b".",
        "calls in each other": name("a", "b") * 200_000 + b")" + b"R\x85" * 199_999 + b"R.",
        "a million sets": b"](" + b"\x8f" * (MILLION - 10) + b"e.",
        "300,000 records": b"](" + name("a", "b") * 300_000 + b"e.",
        "a dict of a million": b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(499_990)) + b"u.",
        "bytearray of 2^62": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b".",
        "text of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b".",
        "integer of 2^31": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        "integer of -1 bytes": b"\x8b" + struct.pack("<i", -1) + b"\x01.",
        "integer of a million bytes as a count": storage
        + text("0")
        + text("cpu")
        + b"\x8b"
        + struct.pack("<i", MILLION)
        + b"\x01" * MILLION
        + b"tQ.",
        "text of -1 bytes": b"T" + struct.pack("<i", -1) + b".",
        "frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"N.",
        "memo entry -1": b"Np-1\n0g-1\n.",
        "memo entry of 4,000 digits": b"Np" + b"9" * 4_000 + b"\n.",
        "array larger than its bytes": array
        + b"(K\x01J\xff\xff\xff\x7f\x85"
        + dtype
        + b"\x89C\x08"
        + bytes(8)
        + b"tb.",
        "array of no bytes, 2^47 wide": array
        + b"(K\x01"
        + b"\x8a\x06"
        + (1 << 47).to_bytes(6, "little")
        + b"K\x00\x86"
        + dtype
        + b"\x89C\x00tb.",
        "array of objects": array
        + b"(K\x01K\x01\x85"
        + dtype.replace(b"f8", b"O8")
        + b"\x89]"
        + name("os", "getcwd")
        + b")Raatb.",
        "array built again and again": text("a" * 100_000)
        + b"q\x010"
        + (array + b"(K\x01J" + struct.pack("<i", 12_500) + b"\x85" + dtype + b"\x89h\x01tb0") * 10_000
        + b"N.",
    }
