"""A Description for a file that carries none: from its tensors, from what the person gave, else by convention."""

from pathlib import Path
from typing import Any

from robust_models.checkpoints.infer import Match, infer
from robust_models.checkpoints.infer.match import num_classes
from robust_models.checkpoints.infer.unread import kind_of_unread
from robust_models.checkpoints.layouts import Found
from robust_models.checkpoints.ours import MAX_CLASSES, Given
from robust_models.checkpoints.published import Published, known_by_hash
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import Description, Normalizer
from robust_models.errors import UserError
from robust_models.labels import assumed_names, default_class_names

MAX_LISTED = 100  # names of ignored entries


def describe(found: Found, path: Path, given: Given, known: Published | None) -> tuple[Description, list[State]]:
    """The description, and the tensors under each set of names that its network may use, the likeliest last.

    What was given counts most, then what is known of the published file, what the file states, what its tensors show;
    what is left is assumed, and `description.assumptions` lists it. Raises UserError where no architecture is given
    and none is recognised.
    """
    match = None if found.arch else infer(found.state)
    if known is None and path.is_file() and not _states_all(match, found, given):
        known = known_by_hash(path)
    arch, arch_from = _first(
        (given.arch, GIVEN), (known and known.arch, PUBLISHED), (found.arch, FROM_FILE), (match and match.arch, SHAPES)
    )
    if arch is None:
        raise UserError(_listing(found, path))
    matched = match if match and arch in (match.arch, *match.also) else None
    candidates = list(found.variants)
    if match and (":" not in arch or matched):
        candidates.append(match.state)
    usual = matched and matched.normalizer
    normalizer, normalizer_from = _first(
        (given.normalizer, GIVEN),
        (found.normalizer, FROM_FILE),
        (known and known.normalizer, PUBLISHED),
        (usual, USUAL),
        (Normalizer(), NO_NORMALIZER),
    )
    activation, activation_from = _activation(arch, given, found, known, match)
    image_size = given.image_size or found.image_size or (matched and matched.image_size)
    size = image_size or _usual_size(found.state, arch, match)
    class_names = given.class_names or found.class_names
    names = tuple(class_names or default_class_names(_num_classes(found.state, path), size))
    also_fits = list(matched.also) if matched and arch_from == SHAPES else []
    assumed = {
        "arch": f"{arch} ({', '.join(also_fits[:3])} would fit as well)" if also_fits else None,
        "normalize": {USUAL: "the usual one of its family", NO_NORMALIZER: "none"}.get(normalizer_from),
        "activation": activation if activation_from in (USUAL, ASSUMED_RELU) else None,
        "class_names": None if class_names or known else assumed_names(names),
        "image_size": None if image_size or known else f"{size} px",
        **found.assumed,
    }
    source = {
        "layout": found.layout,
        "arch": arch_from,
        "also_fits": also_fits,
        "activation": activation_from,
        "normalizer": normalizer_from,
        "ignored": [name[:80] for name in found.ignored[:MAX_LISTED]],
        "told": found.metadata,
        "published": known.name if known else None,
        "assumed": {name: value for name, value in assumed.items() if value is not None},
    }
    description = Description(
        arch,
        names,
        size,
        activation=activation,
        options=found.options if arch == found.arch else _options(arch, matched),
        normalizer=normalizer,
        threat_model=known.threat_model if known else None,
        recipe={"source": {name: value for name, value in source.items() if value is not None}},
    )
    return description, candidates


GIVEN, PUBLISHED, FROM_FILE, SHAPES = "as given", "as published", "from the file", "from the tensors' shapes"
NO_NORMALIZER = "none found, none assumed"
USUAL = "usual in this family; the file does not hold it"
ASSUMED_RELU = "relu is assumed; it leaves no trace in the tensors"


def _first(*sources: tuple[Any, str]) -> tuple[Any, str]:
    """The first value that is there, and where it comes from; (None, "") without any."""
    return next(((value, source) for value, source in sources if value), (None, ""))


def _states_all(match: Match | None, found: Found, given: Given) -> bool:
    """Whether architecture and activation are known without the file's hash, which takes reading it all."""
    arch = given.arch or found.arch or (match and match.arch)
    return arch is not None and (":" in arch or bool(given.activation or (match and match.activation)))


def _activation(
    arch: str, given: Given, found: Found, known: Published | None, match: Match | None
) -> tuple[str, str | None]:
    """(name, where it comes from); a library's or a function's own activation is not ours to name."""
    if ":" not in arch:
        return _first(
            (given.activation, GIVEN),
            (found.activation, FROM_FILE),
            (known and known.activation, PUBLISHED),
            (match and match.activation, USUAL),
            ("relu", ASSUMED_RELU),
        )
    if given.activation:
        raise UserError(f"activation: {given.activation!r} cannot be chosen for {arch}, which brings its own")
    return "relu", None


def _listing(found: Found, path: Path) -> str:
    if kind := kind_of_unread(found.state):
        return f"ckpt: {path} ({found.layout}) is {kind}"
    first = [f"{ascii(name)[1:-1][:60]} {list(tensor.shape)}" for name, tensor in list(found.state.items())[:4]]
    return (
        f"ckpt: {path} ({found.layout}) fits no architecture known here: {len(found.state)} tensors, first "
        f"{', '.join(first)}; pass --arch (in Python: arch=) torchvision:NAME, timm:NAME or "
        "package.module:function, called with num_classes=..."
    )


def _num_classes(state: State, path: Path) -> int:
    count = num_classes(state)
    if not 0 < count <= MAX_CLASSES:
        raise UserError(
            f"ckpt: {path} does not show the number of classes (no matrix of a linear head); pass --class-names "
            "(in Python: class_names=)"
        )
    return count


def _options(arch: str, matched: Match | None) -> dict[str, Any]:
    """What the tensors say to the builder of that library; another library has other words for it."""
    same_library = matched and arch.partition(":")[0] == matched.arch.partition(":")[0]
    return matched.options if matched and same_library else {}


def _usual_size(state: State, arch: str, match: Match | None) -> int:
    """Pixels: the network's usual ones; 224 for the libraries' networks and for stems of 7x7 or more, else 32."""
    if match and match.usual_size and arch == match.arch:
        return match.usual_size
    first_kernel = next((tensor.shape[-1] for tensor in state.values() if tensor.ndim == 4), 3)
    large = arch.startswith(("torchvision:", "timm:", "transformers:")) or first_kernel >= 7
    return 224 if large else 32
