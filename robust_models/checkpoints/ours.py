"""Safetensors files, the description that ours carry in their metadata, and what a person may put in its place."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from robust_models.architectures.libraries import LIBRARIES
from robust_models.checkpoints.programs.program import Program
from robust_models.classifier import STARTS, Description, Generation, Normalizer, RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.files import check_replaces, whole_file
from robust_models.threat import ThreatModel

FORMAT_VERSION = 1
WORDS = "bigroc-words"  # in the metadata of an image-text model of this project (words/two_towers.py)
MAX_HEADER_BYTES = 1 << 40  # more is text of another format, read as a number
MAX_CLASSES = 50_000  # ImageNet-21k has 21,843
MAX_PIXELS = 2048  # of a side; some networks prepare tables that grow with its fourth power
MAX_STEPS = 100_000  # of a generation
MAX_OPTION = 1 << 17  # widths fit; lists as long as a huge depth do not
# Options that make a library look for weights, files or code of its own.
_NEVER = re.compile(r"_|pretrained|checkpoint|cache|weights|feature|scriptable|exportable|no_jit|auto_map|trust")


@dataclass(frozen=True)
class Given:
    """What the person said about a file; None: what the file says, else what is usual."""

    arch: str | None = None
    normalizer: Normalizer | None = None
    activation: str | None = None
    class_names: Sequence[str] | None = None
    image_size: int | None = None

    def over(self, description: Description) -> Description:
        """The description with what was given in its place, which is then no longer assumed."""
        given = {name: getattr(self, name) for name in ("arch", "normalizer", "activation", "image_size")}
        given["class_names"] = self.class_names and tuple(self.class_names)
        given["options"] = {} if self.arch else None
        given = {name: value for name, value in given.items() if value is not None}
        return replace(description, **given).known("normalize" if name == "normalizer" else name for name in given)


def is_safetensors(path: Path) -> bool:
    """By the first bytes: the size of a JSON header, eight bytes, then the header's brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER_BYTES


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. UserError where it is broken."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"ckpt: {path} is not a readable safetensors file ({error})") from error


def read_description(text: str, path: Path, *, any_function: bool = False) -> Description:
    """The description in the metadata entry "bigroc". UserError where it is of a newer version or broken.

    any_function: the network may be built by any function that the description names (package.module:function), which
    runs it; else UserError for such a name.
    """
    try:
        entries = json.loads(text)
        version = entries.pop("version", 0)
        if version > FORMAT_VERSION:
            raise UserError(f"ckpt: {path} has format version {version}, newer than {FORMAT_VERSION}; update bigroc")
        normalizer, threat = entries.pop("normalizer"), entries.pop("threat_model")
        generation = entries.pop("generation", None)
        description = Description(**{**entries, "class_names": tuple(entries["class_names"])})
        description = replace(
            description,
            normalizer=Normalizer(tuple(normalizer["mean"]), tuple(normalizer["std"])),
            threat_model=None if threat is None else ThreatModel(**threat),
            generation=None if generation is None else Generation(**generation),
        )
        _check(description)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"ckpt: {path} has a broken description ({type(error).__name__}: {error})") from error
    if not any_function:
        check_arch(description.arch, path)
    check_options(description.options, path)
    return description


def check_arch(arch: str, path: Path) -> None:
    """UserError where a file names something else than a network of ours or of a library to be built for it."""
    library, colon, name = arch.partition(":")
    if colon and not (library in LIBRARIES and re.fullmatch(r"\w[\w.]{0,200}", name, re.ASCII)):
        raise UserError(
            f"ckpt: {path} says that {ascii(arch)[1:-1][:200]} builds its network, which runs that code; "
            "if you trust it, pass it as --arch (in Python: arch=)"
        )


def check_options(options: Any, path: Path) -> None:
    """UserError where a file's options for a library's builder are more than plain values of a bounded size."""
    if not isinstance(options, dict):
        raise UserError(f"ckpt: {path} has options that are a {type(options).__name__}, expected names and values")
    for name, value in options.items():
        if _NEVER.match(name):
            raise UserError(f"ckpt: {path} has the option {ascii(name)[1:-1][:80]}, which a file may not set")
        _check_value(name[:80], value, path)


def _check_value(name: str, value: Any, path: Path, depth: int = 0) -> None:
    limit = MAX_PIXELS if name in ("img_size", "image_size") else MAX_OPTION
    if isinstance(value, int | float) and not abs(value) <= limit:
        raise UserError(f"ckpt: {path} has {ascii(name)[1:-1]} = {str(value)[:30]}, more than {limit:,}")
    items = (
        list(value.items())
        if isinstance(value, dict)
        else [(name, v) for v in value]
        if isinstance(value, list)
        else []
    )
    if depth > 4 or len(items) > 1000 or (isinstance(value, str) and len(value) > 200):
        raise UserError(f"ckpt: {path} has the option {ascii(name)[1:-1]}, nested too deeply or too long")
    for inner, item in items:
        _check_value(inner[:80], item, path, depth + 1)


def _check(description: Description) -> None:
    """TypeError or ValueError, whose text says what is not as it is written."""
    for name in ("arch", "activation"):
        if not isinstance(getattr(description, name), str):
            raise TypeError(f"{name} is not text")
    names, size = description.class_names, description.image_size
    if not 0 < len(names) <= MAX_CLASSES or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names are not 1 to {MAX_CLASSES:,} texts")
    if type(size) is not int or not 0 < size <= MAX_PIXELS:
        raise ValueError(f"image_size is not a number of pixels up to {MAX_PIXELS}")
    if not isinstance(description.recipe, dict) or not isinstance(description.recipe.get("source", {}), dict):
        raise TypeError("recipe is not names and values")
    assumed = description.assumptions
    if not isinstance(assumed, dict) or not all(isinstance(text, str) for pair in assumed.items() for text in pair):
        raise TypeError("what was assumed is not names and texts")
    numbers = (*description.normalizer.mean, *description.normalizer.std)
    if not all(isinstance(n, int | float) and abs(n) <= 1e6 for n in numbers) or min(description.normalizer.std) <= 0:
        raise ValueError("the normalizer is not finite means and standard deviations above zero")
    if description.generation is not None:
        _check_generation(description.generation)


def _check_generation(generation: Generation) -> None:
    numbers = (generation.step_size, generation.median_energy)
    if not all(isinstance(n, int | float) and abs(n) <= 1e6 for n in numbers) or generation.step_size <= 0:
        raise ValueError("the generation is not a step size above zero and a finite energy")
    if type(generation.steps) is not int or not 0 < generation.steps <= MAX_STEPS:
        raise ValueError(f"the generation's steps are not a number up to {MAX_STEPS:,}")
    if generation.start not in STARTS:
        raise ValueError(f"the generation starts at none of {', '.join(STARTS)}")


def save(model: RobustClassifier, path: Path | str) -> None:
    """Writes network tensors and description to `path` (safetensors), whole or not at all.

    UserError for a program, and where a file stands at `path` that is no checkpoint of this project.
    """
    if isinstance(model.network, Program):
        raise UserError(f"save: {model.description.arch} is code, not only tensors; keep the file it came from")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    entries = asdict(model.description)
    if model.description.generation is None:
        del entries["generation"]  # versions that do not know it read the file
    described = json.dumps({"version": FORMAT_VERSION, **entries})
    check_replaces(Path(path), _is_ours, "checkpoint of this project")
    with whole_file(Path(path)) as partial:
        partial.write_bytes(reproducible_bytes(state, {"bigroc": described, "format": "pt"}))


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "bigroc" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def reproducible_bytes(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes depend on tensors and metadata only: the library orders its header by chance."""
    written = as_bytes(state, metadata)
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size])
    sorted_header = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    sorted_header += b" " * (-len(sorted_header) % 8)  # tensors begin at a multiple of eight bytes
    return len(sorted_header).to_bytes(8, "little") + sorted_header + written[8 + size :]
