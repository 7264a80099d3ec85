"""Files and folders of other frameworks and of distributed training: recognised, named, and what to do with them."""

from collections.abc import Iterable
from pathlib import Path

from robust_models.errors import UserError

_EXPORT = "export it to ONNX and load that with --trust, or copy its weights into a PyTorch network and save that"
_KERAS = f"a Keras model; {_EXPORT}"
_TENSORFLOW = f"of TensorFlow; {_EXPORT}"
_JAX = f"of JAX; {_EXPORT}"
_GGUF = "a GGUF file, which holds quantised language models; no image classifier is read from it"
_DCP = (
    "a distributed checkpoint of torch.distributed.checkpoint; gather it with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt`"
)
_DEEPSPEED = "a DeepSpeed checkpoint; gather it with the zero_to_fp32.py that lies in it, and load what that writes"
_ACCELERATE = "a checkpoint of accelerate; give the file of weights in it (model.safetensors or pytorch_model.bin)"

# First bytes of a file, and where they stand.
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", _KERAS),
    (0, b"GGUF", _GGUF),
    (4, b"TFL3", f"a TensorFlow Lite model; {_EXPORT}"),
    (0, b"\x93NUMPY", "one array of numpy, without the names of a network; save a state_dict() with torch.save"),
)
_SUFFIXES: dict[str, str] = {
    ".keras": _KERAS,
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".pb": f"a graph {_TENSORFLOW}",
    ".tflite": f"a TensorFlow Lite model; {_EXPORT}",
    ".msgpack": f"a Flax checkpoint {_JAX}",
    ".gguf": _GGUF,
    ".distcp": f"one part of {_DCP}",
    ".index": f"one part of a checkpoint {_TENSORFLOW}",
    ".mlmodel": f"a Core ML model; {_EXPORT}",
    ".pdparams": f"a checkpoint of PaddlePaddle; {_EXPORT}",
}
# Patterns of which one lies in a folder of that kind; the first kind counts.
_FOLDERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("*.distcp", ".metadata"), _DCP),
    (("zero_to_fp32.py", "*_model_states.pt", "global_step*/*_model_states.pt"), _DEEPSPEED),
    (("saved_model.pb",), f"a SavedModel {_TENSORFLOW}"),
    (("*.ckpt.index", "*.data-00000-of-*", "checkpoint"), f"a checkpoint {_TENSORFLOW}"),
    (("manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA", "*/manifest.ocdbt"), f"an Orbax checkpoint {_JAX}"),
    (("flax_model.msgpack", "*.msgpack"), f"a Flax checkpoint {_JAX}"),
    (("tf_model.h5", "*.h5", "*.keras"), _KERAS),
    (("random_states_0.pkl", "optimizer.bin"), _ACCELERATE),
)


def refuse_other_formats(path: Path) -> None:
    """UserError that names the kind of a file or folder that is no PyTorch checkpoint, and says what to do with it."""
    kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    if kind is not None:
        raise UserError(f"ckpt: {path} is {kind}")


def _kind_of_folder(path: Path) -> str | None:
    if (path / "config.json").is_file():  # a Hugging Face folder, whatever lies beside it
        weights = ("model.safetensors*", "pytorch_model.bin*")
        return None if _any(path, weights) else _first_kind(path, _FOLDERS[-3:])
    return _first_kind(path, _FOLDERS)


def _first_kind(path: Path, kinds: Iterable[tuple[tuple[str, ...], str]]) -> str | None:
    return next((kind for patterns, kind in kinds if _any(path, patterns)), None)


def _any(path: Path, patterns: Iterable[str]) -> bool:
    return any(next(path.glob(pattern), None) is not None for pattern in patterns)


def _kind_of_file(path: Path) -> str | None:
    """By the first bytes; by the suffix only where these are not a format that is read here."""
    with path.open("rb") as file:
        head = file.read(16)
    named = next((kind for start, magic, kind in _MAGICS if head[start:].startswith(magic)), None)
    if named is not None or not head:
        return named
    is_torch = head.startswith((b"PK\x03\x04", b"\x80")) and path.suffix not in (".keras", ".msgpack")
    return None if is_torch else _SUFFIXES.get(path.suffix.lower())
