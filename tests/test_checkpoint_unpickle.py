"""Hostile and broken files: none runs code, each ends in one line. The corpus is shown to be hostile under `pickle`."""

import contextlib
import copyreg
import io
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_models import UserError, load
from robust_models.checkpoints.torch_format.legacy_stream import LEGACY_MAGIC, LEGACY_PROTOCOL
from robust_models.checkpoints.torch_format.torch_file import read_torch_file
from robust_models.checkpoints.torch_format.unpickle import MAX_OPCODES
from tests.hostile_pickles import name, tensor, text

EXTENSION = 240
ARCH = "tests.test_checkpoint_unpickle:two_by_two"


def two_by_two(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


class Canary:
    """Makes the directory that it is given, by whichever door it comes in."""

    def __new__(cls, path=None):
        self = super().__new__(cls)
        if path is not None:
            os.mkdir(path)
        return self

    def __setstate__(self, path):
        os.mkdir(path)

    def __setitem__(self, _, path):
        os.mkdir(path)

    def append(self, path):
        os.mkdir(path)

    def add(self, path):
        os.mkdir(path)


def stack_name(module: str, function: str) -> bytes:
    return b"\x80\x04" + text(module) + text(function) + b"\x93"


def corpus(path: str) -> dict[str, bytes]:
    """Pickles that make the directory `path` when pickle.loads reads them."""
    mkdir, arg = name("os", "mkdir"), text(path)
    args, code = arg + b"\x85", text(f"__import__('os').mkdir({path!r})") + b"\x85"
    canary = name(__name__, "Canary")
    called = mkdir + args + b"R"
    mapped = name("builtins", "map") + mkdir + b"]" + arg + b"a\x86R"
    return {
        "global": called + b".",
        "os.system": name("os", "system") + text(f"mkdir {path}") + b"\x85R.",
        "posix.system": name("posix", "system") + text(f"mkdir {path}") + b"\x85R.",
        "subprocess": name("subprocess", "call") + b"(]" + text("mkdir") + b"a" + arg + b"atR.",
        "eval": name("builtins", "eval") + code + b"R.",
        "exec": name("builtins", "exec") + code + b"R.",
        "python 2 eval": b"\x80\x02" + name("__builtin__", "eval") + code + b"R.",
        "stack global": stack_name("os", "mkdir") + args + b"R.",
        "stack global, dotted": stack_name("os", "path.os.mkdir") + args + b"R.",
        "framed": b"\x80\x04\x95" + struct.pack("<Q", len(called) + 1) + called + b".",
        "inst": b"(" + arg + b"ios\nmkdir\n.",
        "obj": b"(" + mkdir + arg + b"o.",
        "newobj": b"\x80\x02" + canary + args + b"\x81.",
        "newobj_ex": b"\x80\x04" + canary + args + b"}\x92.",
        "newobj_ex, keywords": b"\x80\x04" + canary + b")}" + text("path") + arg + b"s\x92.",
        "build": b"\x80\x02" + canary + b")\x81" + arg + b"b.",
        "setitem": b"\x80\x02" + canary + b")\x81" + text("k") + arg + b"s.",
        "setitems": b"\x80\x02" + canary + b")\x81(" + text("k") + arg + b"u.",
        "append": b"\x80\x02" + canary + b")\x81" + arg + b"a.",
        "appends": b"\x80\x02" + canary + b")\x81(" + arg + b"e.",
        "additems": b"\x80\x04" + canary + b")\x81(" + arg + b"\x90.",
        "ext1": b"\x80\x02\x82" + struct.pack("<B", EXTENSION) + args + b"R.",
        "ext2": b"\x80\x02\x83" + struct.pack("<H", EXTENSION) + args + b"R.",
        "ext4": b"\x80\x02\x84" + struct.pack("<I", EXTENSION) + args + b"R.",
        "memo": mkdir + b"q\x000h\x00" + args + b"R.",
        "dup": mkdir + b"20" + args + b"R.",
        "popped": called + b"0N.",
        "key": b"}" + called + b"Ns.",
        "partial": name("functools", "partial") + b"(" + mkdir + arg + b"tR)R.",
        "consumed by list": name("builtins", "list") + mapped + b"\x85R.",
        "consumed by OrderedDict": name("collections", "OrderedDict") + mapped + b"\x85R.",
        "consumed by set": name("builtins", "set") + mapped + b"\x85R.",
        "torch's own reducer": name("torch._tensor", "_rebuild_from_type_v2") + b"(" + mkdir + b"N" + args + b"}tR.",
        "consumed by bytes": name("builtins", "bytes") + mapped + b"\x85R.",
        "consumed by Size": name("torch", "Size") + mapped + b"\x85R.",
        "copyreg's newobj": name("copyreg", "__newobj__") + canary + arg + b"\x86R.",
        "copyreg's reconstructor": name("copyreg", "_reconstructor")
        + canary
        + name("builtins", "object")
        + b"N\x87R"
        + arg
        + b"b.",
        "getattr": name("builtins", "getattr") + name("pathlib", "os") + text("mkdir") + b"\x86R" + args + b"R.",
        "in a persistent id": b"(" + text("storage") + called + b"tQ.",
        "deep": b"]" * 100 + called + b"a" * 100 + b".",
    }


CASES = sorted(corpus(""))


@pytest.fixture
def _extension():
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)


def as_zip(data: bytes, path, **entries: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for entry, content in entries.items():
            archive.writestr(f"archive/data/{entry.removeprefix('_')}", content)
    return path


def as_stream(data: bytes, path):
    head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, {})]
    path.write_bytes(b"".join([*head, data, pickle.dumps([], 2)]))
    return path


@pytest.mark.usefixtures("_extension")
@pytest.mark.parametrize("case", CASES)
def test_a_file_that_calls_runs_nothing_and_is_refused(case, tmp_path):
    canary = tmp_path / "canary"
    data = corpus(str(canary))[case]
    nested = b"}" + text("state_dict") + b"}" + text("conv1.weight") + data.removesuffix(b".") + b"ss."
    for write in (as_zip, as_stream):
        for payload in (data, nested, b"\x80\x05" + data):
            with pytest.raises(UserError, match=r"\Ackpt: [^\n]*\Z"):
                load(write(payload, tmp_path / "file.pt"))
            assert not canary.exists()
    with contextlib.suppress(Exception):
        pickle.loads(data)  # noqa: S301  the proof that the canary sings where code does run
    assert canary.exists()


BOMBS = {
    "storage larger than the file": (
        tensor(b"K\x04\x85", count=b"J\xff\xff\xff\x7f") + b".",
        "declares 2147483647 elem",
    ),
    "negative storage": (tensor(b"K\x04\x85", count=b"J\xff\xff\xff\xff") + b".", "declares -1 elements"),
    "tensor larger than its storage": (tensor(b"K\x05\x85") + b".", "larger than its storage"),
    "strides beyond": (tensor(b"K\x04\x85", stride=b"K\x02\x85") + b".", "larger than its storage"),
    "expanded without end": (tensor(b"J\xff\xff\xff\x7f\x85", stride=b"K\x00\x85") + b".", "larger than its storage"),
    "negative size": (tensor(b"J\xff\xff\xff\xff\x85") + b".", "impossible shape"),
    "storage path": (tensor(b"K\x04\x85", key="../../../etc/passwd") + b".", "no zip entry"),
    "memo index": (b"Nr\xff\xff\xff\x7f0h\x00.", "memo entry 0 was never written"),
    "declared bytes": (b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "expected 4611686018427387904 bytes"),
    "marks": (b"(" * 5000 + b".", "nested deeper than"),
    "tuples as key": (b"})" + b"\x85" * 200_000 + b"Ns.", "no tensors"),
    "tuples": (b")" + b"\x85" * 200_000 + b".", "holds no tensors"),
    "instructions": (b"N0" * (MAX_OPCODES // 2) + b"N.", "more than 1,000,000 pickle instructions"),
    "colliding keys": (b"}\x8a\x09" + (1 << 64).to_bytes(9, "little") + b"Ns.", "a huge integer as a key"),
    "list as key": (b"}]Ns.", "a container as a key"),
    "bytearray": (
        name("builtins", "bytearray") + b"\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R.",
        "no tensors",
    ),
    "empty stack": (b"R.", "stack empty"),
    "no mark": (b"t.", "no mark"),
    "odd dict": (b"(Nd.", "a key but no value"),
    "persistent text": (b"P/etc/passwd\n.", "broken"),
    "persistent number": (b"K\x01Q.", "broken"),
    "unknown storage": (tensor(b"K\x04\x85").replace(b"Float", b"Evil") + b".", "storages of type Evil"),
    "out of band": (b"\x97.", "no instruction that a checkpoint has"),
    "no end": (b"]", "broken"),
    "no instruction": (b"\xff.", "broken"),
    "name of control characters": (name("os", "\x1b[2J\r") + b".", "holds no tensors"),
    "digits": (b"L" + b"9" * 100_000 + b"L\n.", "broken"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_refused_in_one_line(case, tmp_path):
    data, message = BOMBS[case]
    with pytest.raises(UserError, match=r"\Ackpt: .*" + message + r"[^\n\x1b]*\Z"):
        load(as_zip(data, tmp_path / "file.pt", _0=bytes(16)))


def saved(path, *, legacy: bool):
    state = {"1.weight": torch.randn(3, 12), "1.bias": torch.randn(3)}
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_short_is_refused_and_a_flipped_bit_harmless(legacy, tmp_path):
    whole = saved(tmp_path / "whole.pt", legacy=legacy).read_bytes()
    assert load(tmp_path / "whole.pt", arch=ARCH).description.num_classes == 3
    file, rng = tmp_path / "file.pt", random.Random(0)
    for size in {0, 1, 2, 9, *(rng.randrange(len(whole)) for _ in range(50)), len(whole) - 1}:
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"\Ackpt: [^\n]*\Z"):
            load(file, arch=ARCH)
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        with contextlib.suppress(UserError):
            load(file, arch=ARCH)


@settings(max_examples=80)
@given(st.data())
def test_edited_pickles_end_in_an_object_or_one_line(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzz.pt"
    pickled = bytearray(b"\x80\x02}" + text("a") + tensor(b"K\x02K\x02\x86", stride=b"K\x02K\x01\x86") + b"s.")
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(pickled)))
        pickled[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(UserError):
        read_torch_file(as_zip(bytes(pickled), file, _0=bytes(16)))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_and_plain_values_equal_those_of_torch_load(protocol, legacy, tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        "views": [base, base[:, 1], base.transpose(0, 2), base[1:, :, 2:], base[:1].expand(5, 3, 4)],
        "kinds": {str(kind): torch.tensor([0, 1, 2]).to(kind) for kind in (torch.float16, torch.bfloat16, torch.bool)},
        "empty": (torch.empty(0, 3), torch.tensor(7), nn.Parameter(torch.randn(3))),
        "plain": [1, -(1 << 70), 0.1, "text", b"\x00\xff", None, True, {1, 2}, (1, (2, 3)), torch.Size([1, 2])],
    }
    kwargs = {"_use_new_zipfile_serialization": not legacy, "pickle_protocol": protocol}
    torch.save(content, tmp_path / "file.pt", **kwargs)
    expected = torch.load(tmp_path / "file.pt", weights_only=False)
    got = read_torch_file(tmp_path / "file.pt")
    assert got["plain"] == expected["plain"]
    for part in ("views", "empty"):
        for ours, theirs in zip(got[part], expected[part], strict=True):
            assert torch.equal(ours, theirs.detach())
    for kind, theirs in expected["kinds"].items():
        assert got["kinds"][kind].dtype == theirs.dtype
        assert torch.equal(got["kinds"][kind], theirs)


def test_a_zip_with_64_bit_numbers_is_read(monkeypatch, tmp_path):
    """As torch.save writes one of more than 4 GB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    data = b"}" + text("w") + tensor(b"K\x04\x85") + b"s."
    file = as_zip(data, tmp_path / "file.pt", _0=torch.arange(4.0).numpy().tobytes())
    assert b"PK\x06\x06" in file.read_bytes()
    assert read_torch_file(file)["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_becomes_numbers_and_tensors(protocol, tmp_path):
    """Arrays of numbers, in every order and width; shared ones stay one; all others are records."""
    grid = np.arange(6).reshape(2, 3)
    arrays = {
        "c": grid.astype("f4"),
        "fortran": np.asfortranarray(grid.astype("f8")),
        "big": grid.astype(">i4"),
        "half": grid.astype("f2"),
        "flags": grid > 2,
        "empty": np.zeros((0, 3)),
        "scalar": np.array(0.5),
        "strided": grid[:, ::2],
        "bytes": np.arange(256, dtype=np.uint8),
    }
    others = {
        "objects": np.array([{}, None], object),
        "text": np.array(["a"]),
        "times": np.array(["2020-01-01"], "M8[D]"),
    }
    content = {"a": np.float64(0.25), "b": np.int64(-3), "again": [arrays["c"]] * 2, **arrays, **others}
    torch.save(content, tmp_path / "file.pt", pickle_protocol=protocol)
    got = read_torch_file(tmp_path / "file.pt")
    assert (got["a"], got["b"]) == (0.25, -3)
    assert got["again"][0] is got["again"][1] is got["c"]
    for key, array in arrays.items():
        assert got[key].dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype
        np.testing.assert_array_equal(got[key].numpy(), array)
    assert {type(got[key]).__name__ for key in others} == {"Record"}


@pytest.mark.parametrize(
    ("part", "new"), [(b"K\x02\x85", b"K\x03\x85"), (b"f8", b"i4"), (b"K\x02\x85", b"J\xff\xff\xff\xff\x85")]
)
def test_an_array_that_disagrees_with_its_bytes_is_refused(part, new, tmp_path):
    data = pickle.dumps({"a": np.zeros(2)}, 2).replace(part, new)
    with pytest.raises(UserError, match=r"an array (of shape \[\d\] in 16 bytes|with an impossible shape)"):
        read_torch_file(as_zip(data, tmp_path / "file.pt"))


def test_a_plain_pickle_of_tensors_or_arrays_is_read(tmp_path):
    content = {"state_dict": {"w": torch.randn(3, 2), "half": torch.ones(2).half()}, "array": np.arange(3.0)}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content, 4))
    got = read_torch_file(tmp_path / "file.pkl")
    assert torch.equal(got["state_dict"]["w"], content["state_dict"]["w"])
    assert torch.equal(got["state_dict"]["half"], content["state_dict"]["half"])
    assert got["array"].tolist() == [0, 1, 2]


def test_other_kinds_of_file_are_named(tmp_path):
    def says(message: str, data: bytes) -> None:
        (tmp_path / "file.pt").write_bytes(data)
        with pytest.raises(UserError, match=message):
            load(tmp_path / "file.pt")

    says("is an HTML page", b"\n <!DOCTYPE html><html>Quota exceeded</html>")
    says("is a git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    says("is empty", b"")
    says("it starts 'hello wo'|it starts b'hello wo'", b"hello world")
    says("a pickle, but not one of torch.save", pickle.dumps([1]) * 2)
    says("holds no tensors by name", pickle.dumps({"a": 1}))
    for entry, message in [("readme.txt", "no data.pkl"), ("m/code/model.py", "TorchScript program")]:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(entry, "")
        says(message, buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N0" * 1_000_000 + b"N.")
    says("is compressed or encrypted", buffer.getvalue())
