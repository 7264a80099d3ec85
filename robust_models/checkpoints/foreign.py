"""A Description for a file that carries none: from its tensors, from what the person gave, else by convention."""

from collections.abc import Sequence
from pathlib import Path

from robust_models.checkpoints.infer import infer
from robust_models.checkpoints.layouts import Found, State
from robust_models.classifier import Description, Normalizer
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.errors import UserError

MAX_CLASSES = 50_000  # ImageNet-21k has 21,843; a head is allocated for as many as a file declares
MAX_LISTED = 100  # names of ignored entries


def describe(
    found: Found,
    path: Path,
    *,
    arch: str | None,
    normalizer: Normalizer | None,
    class_names: Sequence[str] | None,
) -> tuple[Description, list[State]]:
    """The description, and the tensors under each set of names that its network may use, the likeliest last.

    Raises UserError where no architecture is given and none is recognised.
    """
    inferred = infer(found.state)
    candidates = list(found.variants)
    if inferred and (arch is None or ":" not in arch):
        candidates.append(inferred[1])
    if arch is None:
        if inferred is None:
            raise UserError(_listing(found, path))
        arch = inferred[0]
    image_size = _image_size(found.state, arch)
    names = tuple(class_names) if class_names else _class_names(_num_classes(found.state, path), image_size)
    source = {
        "layout": found.layout,
        "arch": "as given" if inferred is None or arch != inferred[0] else "from the tensors' shapes",
        "activation": "relu is assumed; it leaves no trace in the tensors",
        "normalizer": "as given" if normalizer else "from the file" if found.normalizer else "none found, none assumed",
        "ignored": [name[:80] for name in found.ignored[:MAX_LISTED]],
        "told": found.told,
    }
    if ":" in arch:
        del source["activation"]  # the library's or the function's own
    normalizer = normalizer or found.normalizer or Normalizer()
    return Description(arch, names, image_size, normalizer=normalizer, recipe={"source": source}), candidates


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


def _image_size(state: State, arch: str) -> int:
    """Pixels: 224 for the libraries' networks and for stems of 7x7 or more, else 32."""
    kernels = [tensor.shape[-1] for tensor in state.values() if tensor.ndim == 4]
    return 224 if arch.startswith(("torchvision:", "timm:")) or max(kernels[:1], default=3) >= 7 else 32
