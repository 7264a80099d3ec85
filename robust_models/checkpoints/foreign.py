"""A Description for a file that carries none: from its tensors, from what the person gave, else by convention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_models.checkpoints.infer import Match, infer
from robust_models.checkpoints.layouts import Found, State
from robust_models.checkpoints.published import Published, known_by_hash
from robust_models.classifier import Description, Normalizer
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.errors import UserError

MAX_CLASSES = 50_000  # ImageNet-21k has 21,843; a head is allocated for as many as a file declares
MAX_LISTED = 100  # names of ignored entries


@dataclass(frozen=True)
class Given:
    """What the person said about a file; None: what the file says, else what is usual."""

    arch: str | None = None
    normalizer: Normalizer | None = None
    activation: str | None = None
    class_names: Sequence[str] | None = None
    image_size: int | None = None

    def over(self, description: Description) -> Description:
        """The description with what was given in its place."""
        given = {name: getattr(self, name) for name in ("arch", "normalizer", "activation", "image_size")}
        given["class_names"] = self.class_names and tuple(self.class_names)
        given["options"] = {} if self.arch else None
        return replace(description, **{name: value for name, value in given.items() if value is not None})


def describe(found: Found, path: Path, given: Given, known: Published | None) -> tuple[Description, list[State]]:
    """The description, and the tensors under each set of names that its network may use, the likeliest last.

    What was given counts most, then what is known of the published file, what the file tells, what its tensors show.
    Raises UserError where no architecture is given and none is recognised.
    """
    match = None if found.arch else infer(found.state)
    if known is None and path.is_file() and not _tells_all(match, found, given):
        known = known_by_hash(path)
    arch = given.arch or (known and known.arch) or found.arch or (match and match.arch)
    if arch is None:
        raise UserError(_listing(found, path))
    candidates = list(found.variants)
    if match and (":" not in arch or arch == match.arch):
        candidates.append(match.state)
    image_size = given.image_size or found.image_size or _image_size(found.state, arch, match)
    names = given.class_names or found.class_names or _class_names(_num_classes(found.state, path), image_size)
    matched = match if match and arch == match.arch else None
    usual = matched and matched.normalizer
    normalizer = given.normalizer or found.normalizer or (known and known.normalizer) or usual or Normalizer()
    activation, activation_source = _activation(arch, given, known, match)
    source = {
        "layout": found.layout,
        "arch": _who_says([(given.arch, "as given"), (known, "as published"), (found.arch, "from the file")], _SHAPES),
        "also_fits": list(matched.also) if matched and not given.arch else [],
        "activation": activation_source,
        "normalizer": _who_says(
            [
                (given.normalizer, "as given"),
                (found.normalizer, "from the file"),
                (known and known.normalizer, "as published"),
                (usual, USUAL),
            ],
            NO_NORMALIZER,
        ),
        "ignored": [name[:80] for name in found.ignored[:MAX_LISTED]],
        "told": found.told,
    }
    if known:
        source["published"] = known.name
    description = Description(
        arch,
        tuple(names),
        image_size,
        activation=activation,
        options=found.options if arch == found.arch else matched.options if matched else {},
        normalizer=normalizer,
        threat_model=known.threat_model if known else None,
        recipe={"source": {name: value for name, value in source.items() if value is not None}},
    )
    return description, candidates


_SHAPES = "from the tensors' shapes"
NO_NORMALIZER = "none found, none assumed"
USUAL = "usual in this family; the file does not hold it"
ASSUMED_RELU = "relu is assumed; it leaves no trace in the tensors"


def _tells_all(match: Match | None, found: Found, given: Given) -> bool:
    """Whether architecture and activation are known without the file's hash, which takes reading it all."""
    arch = given.arch or found.arch or (match and match.arch)
    return arch is not None and (":" in arch or bool(given.activation or (match and match.activation)))


def _who_says(sources: list[tuple[Any, str]], otherwise: str) -> str:
    return next((text for value, text in sources if value), otherwise)


def _activation(arch: str, given: Given, known: Published | None, match: Match | None) -> tuple[str, str | None]:
    """(name, who says so); a library's or a function's own activation is not ours to name."""
    if ":" in arch:
        if given.activation:
            raise UserError(f"activation: {given.activation!r} cannot be chosen for {arch}, which brings its own")
        return "relu", None
    if given.activation:
        return given.activation, "as given"
    if known and known.activation:
        return known.activation, "as published"
    if match and match.activation:
        return match.activation, USUAL
    return "relu", ASSUMED_RELU


def _listing(found: Found, path: Path) -> str:
    first = [f"{ascii(name)[1:-1][:60]} {list(tensor.shape)}" for name, tensor in list(found.state.items())[:4]]
    return (
        f"ckpt: {path} ({found.layout}) fits no architecture known here: {len(found.state)} tensors, first "
        f"{', '.join(first)}; pass --arch (in Python: arch=) torchvision:NAME, timm:NAME or "
        "package.module:function, called with num_classes=..."
    )


def _num_classes(state: State, path: Path) -> int:
    """Rows of the last matrix, which is the head of every family."""
    heads = [len(tensor) for tensor in state.values() if tensor.ndim == 2]
    if not heads or not 0 < heads[-1] <= MAX_CLASSES:
        raise UserError(
            f"ckpt: {path} does not tell the number of classes (no matrix of a linear head); pass class_names="
        )
    return heads[-1]


def _class_names(count: int, image_size: int) -> tuple[str, ...]:
    return CIFAR10_CLASSES if (count, image_size) == (10, 32) else tuple(str(i) for i in range(count))


def _image_size(state: State, arch: str, match: Match | None) -> int:
    """Pixels: the family's own; 224 for the libraries' networks and for stems of 7x7 or more, else 32."""
    if match and match.image_size and arch == match.arch:
        return match.image_size
    kernels = [tensor.shape[-1] for tensor in state.values() if tensor.ndim == 4]
    return (
        224 if arch.startswith(("torchvision:", "timm:", "transformers:")) or max(kernels[:1], default=3) >= 7 else 32
    )
