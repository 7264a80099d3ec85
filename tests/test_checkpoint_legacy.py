"""What torch.save made of whole networks, and what it wrote in PyTorch 0.1: read without their code."""

import io
import pickle
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_models import UserError
from robust_models.checkpoints.pickled_module import state_of_module
from robust_models.checkpoints.torch_format.legacy_stream import LEGACY_MAGIC, LEGACY_PROTOCOL
from robust_models.checkpoints.torch_format.records import BrokenPickle, Record
from robust_models.checkpoints.torch_format.torch_file import read_torch_file
from tests.fuzz_unpickle import as_tar


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten())
        self.tied = self.head = nn.Linear(4, 2)
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("passing", torch.zeros(2), persistent=False)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_network_that_was_pickled_whole_gives_its_state_dict(protocol, legacy, tmp_path):
    network = Net()
    content = {"whole": network, "parallel": nn.DataParallel(network), "epoch": 3}
    options = {"_use_new_zipfile_serialization": not legacy, "pickle_protocol": protocol}
    torch.save(content, tmp_path / "file.pt", **options)
    got = read_torch_file(tmp_path / "file.pt")
    for name, module in (("whole", network), ("parallel", content["parallel"])):
        state = state_of_module(got[name])
        assert list(state) == list(module.state_dict())
        assert all(torch.equal(state[key], tensor) for key, tensor in module.state_dict().items())
    assert state_of_module(got) is state_of_module(Record("a.Module", ())) is None


def test_modules_that_hold_each_other_or_multiply_are_refused():
    def module(**children):
        record = Record("a.Module", ())
        record.state = {"_parameters": {}, "_buffers": None, "_modules": children}
        return record

    circle = module()
    circle.state["_modules"]["again"] = circle
    twice = module()
    for _ in range(90):
        twice = module(a=twice, b=twice)
    for record, message in [(circle, "nested deeper"), (twice, "more than 100,000 modules")]:
        with pytest.raises(BrokenPickle, match=message):
            state_of_module(record)


class OldPickler(pickle.Pickler):
    """Of PyTorch 0.1: a module's class with its source, a parameter as its class, tensor and state; tensors by key."""

    def __init__(self, file):
        super().__init__(file, 2)
        self.seen = {object()}

    def persistent_id(self, obj):
        if isinstance(obj, type) and issubclass(obj, nn.Module) and obj not in self.seen:
            self.seen.add(obj)
            return (obj, "file.py", "class Source: ...")
        return "7" if obj == "storage 7" else "8" if obj == "tensor 8" else None

    def reducer_override(self, obj):
        if isinstance(obj, nn.Parameter):
            return nn.Parameter, ("tensor 8",), (True, False, None)
        return NotImplemented


def old_pickle(value) -> bytes:
    buffer = io.BytesIO()
    OldPickler(buffer).dump(value)
    return buffer.getvalue()


def old_file(
    path: Path, value, *, views=(), count=6, storage: int | None = 7, sizes=(2, 3), strides=(3, 1), offset=0
) -> Path:
    """A float storage 7 of 0..5 and a tensor 8 in it."""
    storages = pickle.dumps(1, 2) + pickle.dumps((7, "cpu", torch.FloatStorage), 2)
    storages += struct.pack("<q", count) + torch.arange(6.0).numpy().tobytes() + pickle.dumps(list(views), 2)
    numbers = (*sizes, *strides, offset)
    tensors = pickle.dumps(1, 2) + pickle.dumps((8, storage, torch.FloatStorage), 2)
    tensors += struct.pack(f"<i4x{len(numbers)}q", len(sizes), *numbers)
    members = {"sys_info": b"", "storages": storages, "tensors": tensors, "pickle": old_pickle(value)}
    path.write_bytes(as_tar(members))
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sizes": (3, 2), "strides": (1, 3)},
        {"sizes": (2,), "strides": (2,), "offset": 3},
        {"views": [(9, 7, 2, 4)], "storage": 9, "sizes": (4,), "strides": (1,)},
    ],
)
def test_a_tar_of_torch_0_1_equals_what_torch_reads(options, tmp_path):
    path = old_file(tmp_path / "file.pt", {"a": "tensor 8", "n": 3, "storage": "storage 7"}, **options)
    got, expected = read_torch_file(path), torch.load(path, weights_only=False)
    assert torch.equal(got["a"], expected["a"])
    assert got["storage"].flat.tolist() == [0, 1, 2, 3, 4, 5]
    assert got["n"] == 3


def test_a_network_that_torch_0_1_pickled_gives_its_state_dict(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False))
    state = state_of_module(read_torch_file(old_file(tmp_path / "file.pt", network)))
    assert list(state) == ["0.weight", "1.weight"]
    assert state["1.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1 << 40}, "declares 1099511627776 elements"),
        ({"count": -1}, "declares -1 elements"),
        ({"storage": 3}, "impossible shape or without a storage"),
        ({"sizes": (2, 4)}, "larger than its storage"),
        ({"sizes": (-2, 3)}, "impossible shape"),
        ({"sizes": (1,) * 17, "strides": (1,) * 17}, "impossible shape"),
        ({"offset": 1}, "larger than its storage"),
        ({"views": [(9, 7, 4, 4)]}, "larger than its storage"),
        ({"views": [(9, 1, 0, 4)]}, "not there"),
        ({"storage": None}, "a persistent id of no tensor"),
    ],
)
def test_a_broken_tar_of_torch_0_1_is_refused(options, message, tmp_path):
    path = old_file(tmp_path / "file.pt", ["tensor 8"], **options)
    with pytest.raises(UserError, match=rf"\Ackpt: [^\n]*{message}"):
        read_torch_file(path)


def test_another_tar_is_named(tmp_path):
    (tmp_path / "file.pt").write_bytes(as_tar({"cat.jpg": b"jpeg"}))
    with pytest.raises(UserError, match=r"is a tar archive, but not one of torch\.save"):
        read_torch_file(tmp_path / "file.pt")


def test_a_storage_within_another_equals_what_torch_reads(tmp_path):
    """PyTorch before 0.4 wrote views of storages into the stream: elements 2..5 of six, and a tensor of 3 of them."""

    class Old(pickle.Pickler):
        def persistent_id(self, obj):
            view = ("part", 2, 4)
            return ("storage", torch.FloatStorage, "whole", "cpu", 6, view) if obj == "a storage" else None

        def reducer_override(self, obj):
            if isinstance(obj, torch.Tensor):
                return torch._utils._rebuild_tensor, ("a storage", 1, (3,), (1,))
            return NotImplemented

    buffer = io.BytesIO()
    for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, {}):
        pickle.dump(value, buffer, 2)
    Old(buffer, 2).dump({"a": torch.zeros(1)})
    pickle.dump(["whole"], buffer, 2)
    (tmp_path / "file.pt").write_bytes(buffer.getvalue() + struct.pack("<q", 6) + torch.arange(6.0).numpy().tobytes())
    got, expected = (read(tmp_path / "file.pt") for read in (read_torch_file, torch.load))
    assert got["a"].tolist() == expected["a"].tolist() == [3, 4, 5]
