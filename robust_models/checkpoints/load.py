"""From a name or a file to a RobustClassifier. Without trust, loading never runs code from the file."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from robust_models.checkpoints import programs
from robust_models.checkpoints.fill import fill
from robust_models.checkpoints.foreign import Given, describe
from robust_models.checkpoints.hugging_face import folder_of, read_folder
from robust_models.checkpoints.layouts import Found, State, find_layout
from robust_models.checkpoints.ours import is_safetensors, read_description, read_safetensors
from robust_models.checkpoints.published import fetch, published
from robust_models.checkpoints.torch_format.torch_file import read_torch_file
from robust_models.classifier import Normalizer, RobustClassifier
from robust_models.errors import UserError

PRETRAINED = Path(__file__).parent.parent / "pretrained"


def embedded_names() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(file.stem for file in PRETRAINED.glob("*.safetensors"))


def find(checkpoint: str | Path) -> Path:
    """Where `checkpoint` lies: an embedded classifier, a published one (downloaded if missing), a file or a folder.

    UserError where there is nothing.
    """
    name, path = str(checkpoint), Path(checkpoint)
    if name in embedded_names():
        return PRETRAINED / f"{name}.safetensors"
    if name in published() and not path.exists():
        return fetch(published()[name])
    if not (path.is_file() or path.is_dir()):
        near = difflib.get_close_matches(name, [*embedded_names(), *published()], n=1)
        hint = f"did you mean {near[0]}?" if near else f"give a file or one of: {', '.join(embedded_names())}"
        raise UserError(f"ckpt: no file {path}; {hint}")
    return path


def load(
    checkpoint: str | Path,
    *,
    arch: str | None = None,
    normalize: str | Normalizer | None = None,
    activation: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    ema: bool = False,
    trust: bool = False,
) -> RobustClassifier:
    """The classifier called `checkpoint` (see embedded_names, published) or stored there, in eval mode on the CPU.

    Reads this project's files and other people's: PyTorch's formats, safetensors, Hugging Face folders (layouts.py,
    hugging_face.py). What a foreign file does not tell may be given: arch (see architectures.build; None: from the
    tensors' shapes), normalize (see Normalizer.parse; None: the file's, else "none"), activation (relu, silu, softplus;
    None: relu where the file is not known), class_names and image_size [pixels]. ema: the averaged weights. trust: also
    load TorchScript, torch.export and ONNX files, which are programs and run with your rights.
    `description.recipe["source"]` says what was read, ignored and assumed. UserError when there is no file, it is not a
    checkpoint, or it does not fit its architecture.
    """
    path = find(checkpoint)
    given = Given(arch, None if normalize is None else Normalizer.parse(normalize), activation, class_names, image_size)
    if kind := programs.kind_of(path):
        return _program(path, kind, given, ema=ema, trust=trust)
    tensors, metadata = read_safetensors(path) if path.is_file() and is_safetensors(path) else (None, {})
    if tensors is not None and "bigroc" in metadata:
        if ema:
            raise UserError(f"ckpt: {path} has no averaged weights beside its own; load it without ema")
        trusted = trust or given.arch is not None
        description = given.over(read_description(metadata["bigroc"], path, any_function=trusted))
        return RobustClassifier(fill(description, [tensors], path), description).eval()
    description, candidates = describe(_found(path, tensors, ema), path, given, published().get(str(checkpoint)))
    return RobustClassifier(fill(description, candidates, path), description).eval()


def _found(path: Path, tensors: State | None, ema: bool) -> Found:
    """The classifier in a foreign folder or file (`tensors` where it is safetensors)."""
    if folder := path if path.is_dir() else folder_of(path):
        return read_folder(folder, ema=ema)
    if tensors is None:
        return find_layout(read_torch_file(path), ema=ema, where=f"ckpt: {path}")
    found = find_layout(tensors, ema=ema, where=f"ckpt: {path}")
    found.layout = f"safetensors without this project's description, {found.layout}"
    return found


def _program(path: Path, kind: programs.Kind, given: Given, *, ema: bool, trust: bool) -> RobustClassifier:
    for flag, value in (("arch", given.arch), ("activation", given.activation), ("ema", ema)):
        if value:
            raise UserError(f"{flag}: does not apply to {path}, a {kind} file, which carries its own network")
    return programs.load_program(
        path,
        kind,
        trust=trust,
        normalizer=given.normalizer,
        class_names=given.class_names,
        image_size=given.image_size,
    )
