"""What a person may say about a checkpoint on any command line, loading with it, and which file a number came from."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from robust_models.architectures import ACTIVATIONS
from robust_models.checkpoints.load import find, load, report_assumptions
from robust_models.classifier import NORMALIZERS, RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.config import STRICT, AtLeastOne, Number
from robust_models.runtime.files import sha256_of

DRAWS = 16  # of the noise of a smoothed classifier
VIEW_KINDS = "crop,flip,noise"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CheckpointFlags:
    """Fields of every command that reads a classifier; all default to what the file says."""

    arch: str | None = Field(
        default=None, description="a foreign checkpoint's network (null: from its tensors' shapes)"
    )
    normalize: str | None = Field(
        default=None,
        description=f"its normaliser: {', '.join(NORMALIZERS)}, or mean,std as two or six numbers (null: the file's)",
    )
    activation: str | None = Field(
        default=None, description=f"its activation: {', '.join(ACTIVATIONS)} (null: relu unless known)"
    )
    class_names: str | None = Field(
        default=None,
        description="its classes in order: with commas, or a text file with one on each line (null: the file's)",
    )
    image_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="pixels of the side of the images it was made for (null: the file's, or its family's)"
    )
    head: str | None = Field(
        default=None,
        description="the head of an image encoder of CLIP: a file of text embeddings [classes, embedding] (zero-shot), "
        "or of a linear layer's weight and bias, or open_clip:NAME:FILE, whose texts make one",
    )
    prompt: str | None = Field(
        default=None,
        description="of an image-text model: what its images are to show; several, with | between them, are as many "
        "classes; one alone is told apart from any photo",
    )
    template: str | None = Field(
        default=None,
        description="of an image-text model: texts into which class names are set at {}, with | between them, or a "
        'file of lines (null: "a photo of a {}")',
    )
    ema: bool = Field(default=False, description="take the averaged weights of a checkpoint that has both")
    smoothing: Annotated[Number, Field(gt=0)] | None = Field(
        default=None,
        description="classify by the mean over Gaussian noise of this standard deviation, pixels in [0,1]: randomized "
        "smoothing (null: without noise)",
    )
    smoothing_draws: AtLeastOne = Field(default=DRAWS, description="of that noise; each costs a pass of the network")
    views: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="classify by the mean over so many views of each image, the first of which is the image: for steps "
        "that change what it shows (null: the image alone)",
    )
    view_kinds: str = Field(default=VIEW_KINDS, description="what makes views differ, with commas")
    trust: bool = Field(
        default=False,
        description="load TorchScript, torch.export and ONNX files and generators of code, which run with your rights",
    )

    def load(
        self, checkpoint: str, *, quiet: bool = False, fresh_head: bool = False, section: str = ""
    ) -> RobustClassifier:
        """robust_models.load with these settings; it says on stderr what was assumed, unless quiet.

        The checkpoint may bring settings of its own, which come first: "FILE,normalize=cifar10" (see split_flags).
        section: the one that a command has these flags in, which that line then names them with.
        """
        file, own = split_flags(checkpoint)
        default = CheckpointFlags()
        if self.smoothing is None and self.smoothing_draws != default.smoothing_draws:
            raise UserError(f"smoothing_draws: {self.smoothing_draws} is for --smoothing, which is not given")
        if self.views is None and self.view_kinds != default.view_kinds:
            raise UserError(f"view_kinds: {self.view_kinds} is for --views, which is not given")
        settings: dict[str, Any] = {
            name: getattr(self if getattr(own, name) == getattr(default, name) else own, name)
            for name in CheckpointFlags.__dataclass_fields__
        }
        settings["class_names"] = settings["class_names"] and _names(settings["class_names"])
        model = load(file, **settings, quiet=True, fresh_head=fresh_head)
        if not quiet:
            report_assumptions(model.description, checkpoint, section)
        return model


def reading(flags: CheckpointFlags) -> dict[str, Any]:
    """The flags by name as far as they decide what the classifier computes: draws of no noise do not."""
    found = {name: getattr(flags, name) for name in CheckpointFlags.__dataclass_fields__}
    idle = [name for name in ("prompt", "template", "views") if found[name] is None]
    idle += ["smoothing_draws"] if flags.smoothing is None else []
    idle += ["view_kinds"] if flags.views is None else []
    return {name: value for name, value in found.items() if name not in idle}


@dataclasses.dataclass(frozen=True)
class Source:
    """A file as the user called it, the sha256 of its bytes, and what it does not state (Description.assumptions)."""

    name: str
    sha256: str
    assumptions: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)


def load_classifier(checkpoint: str, flags: CheckpointFlags | None = None) -> tuple[RobustClassifier, Source]:
    """The classifier called or stored at `checkpoint`, and its provenance. UserError as robust_models.load.

    Also UserError where a training run replaced the file meanwhile: hash and network would not belong together.
    """
    path = file_of(checkpoint)
    before = sha256_of(path)
    model = (flags or CheckpointFlags()).load(checkpoint)
    if sha256_of(path) != before:
        raise UserError(f"ckpt: {path} was replaced while it was read; run the command again, or copy the file first")
    return model, Source(checkpoint, before, model.description.assumptions)


_FLAGS = TypeAdapter(CheckpointFlags)
_SETTING = re.compile(f"(?:{'|'.join(CheckpointFlags.__dataclass_fields__)})=")
_NUMBER = re.compile(r"[-+.\deE]+")


def split_flags(text: str) -> tuple[str, CheckpointFlags]:
    """ "FILE,normalize=cifar10,image_size=64" as the file's name and its flags: for options that name a classifier.

    A file that is called so is itself. UserError where a value does not fit.
    """
    if Path(text).exists():
        return text, CheckpointFlags()
    checkpoint, *settings = re.split(rf",(?={_SETTING.pattern})", text)
    try:
        return checkpoint, _FLAGS.validate_python(dict(setting.split("=", 1) for setting in settings))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{text}: {'.'.join(map(str, first['loc']))}: {first['msg']}; got {first['input']!r}"
        ) from error


def split_checkpoints(text: str) -> list[str]:
    """ "a.pt,normalize=cifar10,b.pt" as the classifiers one by one, each with its settings (see split_flags).

    A comma splits only where it is part of no file that is there and of no setting: a file called so is itself, also as
    the value of a setting; numbers behind normalize= belong to it. Class names with commas go into a file.
    """
    words, found = text.split(","), []
    while words:
        found.append(_take(words, "").strip())
        while words and (setting := _SETTING.match(words[0])):
            found[-1] += f",{_take(words, setting[0])}"
            while setting[0] == "normalize=" and words and _NUMBER.fullmatch(words[0].strip()):
                found[-1] += f",{words.pop(0)}"
    return found


def file_of(checkpoint: str) -> Path:
    """Where the checkpoint lies, whose name may have settings behind it. UserError as robust_models.load."""
    return find(split_flags(checkpoint)[0])


def _take(words: list[str], prefix: str) -> str:
    """Removes the words that make up the name of a file behind the prefix, or the first word; gives them joined."""
    joined = (",".join(words[:count]) for count in range(len(words), 0, -1))
    taken = next((text for text in joined if _is_there(text.removeprefix(prefix))), words[0])
    del words[: taken.count(",") + 1]
    return taken


def _is_there(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name.strip()).exists()
    except (OSError, ValueError):  # too long for a name, a null byte
        return False


def _names(text: str) -> list[str]:
    """Class names, one per line of the file of that name, or between the text's commas."""
    try:
        lines = Path(text).read_text("utf-8").splitlines() if Path(text).is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class_names: {text} is not a text file ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"class_names: {twice!r} stands twice in {text}; each class needs a name of its own")
    return names
