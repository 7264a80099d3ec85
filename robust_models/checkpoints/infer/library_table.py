"""Writes the table of library networks that imagenet.py looks things up in, from the installed torchvision and timm.

    python -m robust_models.checkpoints.infer.library_table

It takes a quarter of an hour on one core: every network is built, without memory for its tensors. Run it again when
these libraries have new networks.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator

from robust_models.checkpoints.fill import outline
from robust_models.checkpoints.infer.imagenet import TABLE, fingerprint
from robust_models.runtime.files import whole_file

_USUAL_SIZE = 224
_CLASSES = 1009  # a prime
_MANY = 10_000  # tensors; no network has more


def line_of(names: dict[str, int], key: str) -> str:
    """The fingerprint, then NAME@PIXELS for each network: torchvision's, the usual size and short names first."""

    def plainness(name: str) -> tuple[bool, int, int, str]:
        return not name.startswith("torchvision:"), abs(names[name] - _USUAL_SIZE), len(name), name

    return " ".join([key, *(f"{name}@{names[name]}" for name in sorted(names, key=plainness))])


def networks() -> Iterator[tuple[str, int]]:
    """All names, and the pixels of their own image size."""
    import timm
    from torchvision import models

    for name in models.list_models(module=models):
        crop = models.get_model_weights(name)["DEFAULT"].transforms().crop_size
        yield f"torchvision:{name}", crop[0]
    for name in timm.list_models():
        cfg = timm.get_pretrained_cfg(name)
        yield f"timm:{name}", cfg.input_size[-1] if cfg else _USUAL_SIZE


def key_of(name: str) -> str:
    """The fingerprint of a network, built for a number of classes that is no width of any layer."""
    from robust_models.architectures import build

    return fingerprint(outline(lambda: build(name, num_classes=_CLASSES), _MANY).state_dict())


def main() -> None:
    """Builds every network without memory and writes the table."""
    table: dict[str, dict[str, int]] = defaultdict(dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say about the future of their initial weights
        for name, size in networks():
            table[key_of(name)][name] = size
    with whole_file(TABLE) as partial:
        partial.write_text("".join(f"{line_of(names, key)}\n" for key, names in sorted(table.items())))


if __name__ == "__main__":
    main()
