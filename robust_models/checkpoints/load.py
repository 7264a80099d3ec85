"""From a name or a file to a RobustClassifier. Without trust, loading never runs code from the file."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_models.architectures.libraries import is_function
from robust_models.checkpoints import programs
from robust_models.checkpoints.encoder_head import with_head_file
from robust_models.checkpoints.fill import fill
from robust_models.checkpoints.foreign import describe
from robust_models.checkpoints.functions import load_function
from robust_models.checkpoints.hub import OPEN_CLIP, HubName, fetch_from_hub, is_hub_name, own_file
from robust_models.checkpoints.hugging_face import folder_of, read_folder
from robust_models.checkpoints.layouts import Found, find_layout
from robust_models.checkpoints.other_formats import refuse_other_formats
from robust_models.checkpoints.ours import WORDS, Given, is_safetensors, read_description, read_safetensors
from robust_models.checkpoints.published import Published, fetch, published
from robust_models.checkpoints.subtrees import State
from robust_models.checkpoints.torch_format import read_torch_file
from robust_models.classifier import Description, Normalizer, RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.distributed import print_once
from robust_models.runtime.files import PRETRAINED


def embedded_names() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(file.stem for file in PRETRAINED.glob("*.safetensors"))


def find(checkpoint: str | Path) -> Path:
    """Where `checkpoint` lies: an embedded classifier, a published one or one of the Hugging Face hub (hf:OWNER/NAME),
    downloaded if missing, a file or a folder.

    UserError where there is nothing.
    """
    name, path = str(checkpoint), Path(checkpoint)
    if name in embedded_names():
        return PRETRAINED / f"{name}.safetensors"
    if (known := _published(checkpoint)) is not None:
        return fetch(known)
    if is_hub_name(checkpoint):
        return fetch_from_hub(HubName.parse(name))
    if name.startswith(OPEN_CLIP):
        from robust_models.checkpoints.words.open_clip_models import weights_of

        return weights_of(name)
    if not (path.is_file() or path.is_dir()):
        near = difflib.get_close_matches(name, [*embedded_names(), *published()], n=1)
        hint = f"did you mean {near[0]}?" if near else f"give a file or one of: {', '.join(embedded_names())}"
        raise UserError(f"ckpt: no file {path}; {hint}")
    return own_file(path) or path


def _published(checkpoint: str | Path) -> Published | None:
    """The published classifier of that name; a file of that name is only what its bytes are (known_by_hash)."""
    return None if Path(checkpoint).exists() else published().get(str(checkpoint))


def load(
    checkpoint: str | Path,
    *,
    arch: str | None = None,
    normalize: str | Normalizer | None = None,
    activation: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    head: str | Path | None = None,
    prompt: str | None = None,
    template: str | None = None,
    ema: bool = False,
    smoothing: float | None = None,
    smoothing_draws: int = 16,
    views: int | None = None,
    view_kinds: str = "crop,flip,noise",
    trust: bool = False,
    fresh_head: bool = False,
    quiet: bool = False,
) -> RobustClassifier:
    """The classifier called `checkpoint` (see embedded_names, published) or stored there, in eval mode on the CPU.

    Reads this project's files and other people's: PyTorch's formats, safetensors, Hugging Face folders (layouts.py,
    hugging_face.py). What a foreign file does not state may be given: arch (see architectures.build; None: from the
    tensors' shapes), normalize (see Normalizer.parse; None: the file's, else "none"), activation (see ACTIVATIONS;
    None: relu where the file is not known), class_names and image_size [pixels]. head: the file of the head of an image
    encoder of CLIP (see encoder_head.with_head), or an image-text model whose texts make one. prompt, template: the
    classes of an image-text model (see words.prompts.Texts.of). ema: the averaged weights. trust: also load
    TorchScript, torch.export and ONNX files, which are programs and run with your rights. fresh_head: for training on,
    the last linear layer begins anew where the file is a backbone without one. `description.recipe["source"]`
    says what was read and ignored, `description.assumptions` what was assumed; one line on stderr says the latter too,
    unless quiet. UserError when there is no file, it is not a checkpoint, it does not fit its architecture, or its
    weights are not finite.
    """
    path = find(checkpoint)
    given = Given(arch, None if normalize is None else Normalizer.parse(normalize), activation, class_names, image_size)
    texts = (prompt, template)
    model = _open(path, given, checkpoint, head, texts, ema=ema, trust=trust, fresh_head=fresh_head)
    if smoothing is not None:
        from robust_models.smoothing import Smoothed

        model = Smoothed(model, smoothing, smoothing_draws)
    if views is not None:
        from robust_models.views import Viewed

        if smoothing is not None:
            raise UserError(f"views: {views}, but --smoothing {smoothing:g} averages already; give one of them")
        model = Viewed(model, views, [kind.strip() for kind in view_kinds.split(",") if kind.strip()])
    if not quiet:
        report_assumptions(model.description, str(checkpoint))
    return model


def _open(
    path: Path,
    given: Given,
    checkpoint: str | Path,
    head: str | Path | None,
    texts: tuple[str | None, str | None],
    *,
    ema: bool,
    trust: bool,
    fresh_head: bool,
) -> RobustClassifier:
    """The classifier in a file of ours, in a program, in anyone's file or folder, or of an image-text model."""
    tensors, metadata = read_safetensors(path) if path.is_file() and is_safetensors(path) else (None, {})
    has_texts = str(checkpoint).startswith(OPEN_CLIP) or WORDS in metadata or str(head).startswith(OPEN_CLIP)
    if not has_texts and (asked := next((text for text in texts if text is not None), None)):
        raise UserError(
            f"prompt: {asked!r}, but {checkpoint} reads no texts; give an image-text model, {OPEN_CLIP}NAME:FILE, or "
            f"one whose texts make the head of a CLIP image encoder, --head {OPEN_CLIP}NAME:FILE"
        )
    if tensors is not None and "bigroc" in metadata:
        if ema:
            raise UserError(f"ckpt: {path} has no averaged weights beside its own; load it without ema")
        if head is not None:
            raise UserError(f"head: {path} is a classifier of this project, which has one; leave head out")
        trusted = trust or given.arch is not None
        description = given.over(read_description(metadata["bigroc"], path, any_function=trusted))
        return RobustClassifier(fill(description, [tensors], path), description).eval()
    if tensors is None and (kind := programs.kind_of(path)):
        return _program(path, kind, given, head, ema=ema, trust=trust)
    if has_texts:
        from robust_models.checkpoints.words.as_classifier import with_texts

        encoder = _found(path, tensors, ema) if str(head).startswith(OPEN_CLIP) else None
        found, given = with_texts(checkpoint, path, tensors, metadata, encoder, given, head, texts, ema=ema)
    else:
        found = _found(path, tensors, ema)
        found = found if head is None else with_head_file(found, Path(head), path)
    description, candidates = describe(found, path, given, _published(checkpoint))
    if is_function(description.arch):
        return load_function(description, candidates, path)
    return RobustClassifier(fill(description, candidates, path, fresh_head=fresh_head), description).eval()


_WORDS = {
    "arch": "architecture",
    "normalize": "normaliser",
    "activation": "activation",
    "class_names": "class names",
    "image_size": "image size",
    "head": "head",
}


def format_assumptions(assumptions: Mapping[str, str], section: str = "") -> str:
    """What was assumed, each with the flag that states it: "normaliser none (--normalize)"; "" for nothing.

    section: of a command's config, where it has these flags: "init_reading" for --init-reading.normalize.
    """
    prefix = f"--{section.replace('_', '-')}." if section else "--"
    return ", ".join(
        f"{_WORDS.get(name, name)} {ascii(value)[1:-1]} ({prefix}{name.replace('_', '-')})"
        for name, value in ((ascii(name)[1:-1], value) for name, value in assumptions.items())
    )


def report_assumptions(description: Description, checkpoint: str, section: str = "") -> None:
    """One line on stderr about what was assumed of the checkpoint; once, by the first of several ranks."""
    if text := format_assumptions(description.assumptions, section):
        print_once([f"{checkpoint}: not stated in the file, so assumed: {text}"])


def _found(path: Path, tensors: State | None, ema: bool) -> Found:
    """The classifier in a foreign folder or file (`tensors` where it is safetensors)."""
    if tensors is None:
        refuse_other_formats(path)
    if folder := path if path.is_dir() else folder_of(path):
        return read_folder(folder, ema=ema)
    if tensors is None:
        return find_layout(read_torch_file(path), ema=ema, where=f"ckpt: {path}")
    found = find_layout(tensors, ema=ema, where=f"ckpt: {path}")
    found.layout = f"safetensors without this project's description, {found.layout}"
    return found


def _program(
    path: Path, kind: programs.Kind, given: Given, head: str | Path | None, *, ema: bool, trust: bool
) -> RobustClassifier:
    for flag, value in (("arch", given.arch), ("activation", given.activation), ("head", head), ("ema", ema)):
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
