"""The low-resolution images that generation begins with ("seeds" in arXiv:1906.09453), as a distribution per class.

Not to be confused with the seed of random numbers, which is `seed` everywhere.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_models.checkpoints.flags import file_of
from robust_models.errors import UserError
from robust_models.images import open_images, to_float
from robust_models.mixture import Mixture
from robust_models.runtime.files import PRETRAINED, located, whole_file

SUFFIX = ".seeds.npz"  # beside a checkpoint, after its name without the suffix
EMBEDDED = PRETRAINED / "cifar10-seeds.npz"
# Mirza et al. 2024, arXiv:2407.06315: the directions that hold this share of a class's variance, and the spread along
# them in standard deviations (there .005 times the singular values of 5,000 images, which are 70.7 of them).
PCA_VARIANCE, PCA_SPREAD = 0.99, 0.35
_ARRAYS = {"weights": 2, "means": 3, "factors": 4, "noise": 2}  # and their dimensions; the first is the class


@dataclass(frozen=True)
class ClassSeeds:
    """A mixture of Gaussians per class over images that were averaged in blocks to 3 x side x side numbers."""

    class_names: tuple[str, ...]
    mixtures: tuple[Mixture, ...]
    side: int  # pixels
    image_size: int  # pixels, a multiple of side
    source: str  # which images, how many

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        """A seed of the class, float32 [3,image_size,image_size] in [0,1], every number as a block."""
        x = self.mixtures[label].sample(generator).float().clamp(0, 1).view(3, self.side, self.side)
        factor = self.image_size // self.side
        return x.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)

    def as_gaussians(self) -> "ClassSeeds":
        """One Gaussian per class, with the mixture's mean and covariance."""
        return replace(self, mixtures=tuple(mixture.as_one() for mixture in self.mixtures))

    def of_any(self, class_names: tuple[str, ...]) -> "ClassSeeds":
        """For other classes, each of which draws from all of these: where they are texts, none has seeds of its own."""
        return replace(self, class_names=class_names, mixtures=(Mixture.merged(self.mixtures),) * len(class_names))

    def along_principal(self) -> "ClassSeeds":
        """Draws about each class's mean along its principal directions alone, as Mirza et al. begin."""
        mixtures = tuple(mixture.as_one().principal(PCA_VARIANCE, PCA_SPREAD) for mixture in self.mixtures)
        return replace(self, mixtures=mixtures)

    def save(self, path: Path) -> None:
        """An .npz; means and factors in float16, of which the error is less than a grey level."""
        stacked = {name: torch.stack([getattr(mixture, name) for mixture in self.mixtures]) for name in _ARRAYS}
        arrays = {name: values.numpy().astype(_stored(name)) for name, values in stacked.items()}
        facts = {"class_names": np.array(self.class_names), "image_size": self.image_size, "source": self.source}
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays, **facts)

    @classmethod
    def load(cls, path: Path) -> "ClassSeeds":
        """UserError where the file is none that `save` wrote."""
        try:
            with np.load(located(path), allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name].astype(np.float64)) for name in _ARRAYS}
                names, size, source = file["class_names"].tolist(), int(file["image_size"]), str(file["source"])
        except FileNotFoundError:
            raise UserError(f"seeds: no file {path}; bigroc refine --task seeds makes one") from None
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"seeds: {path} is no file of seeds ({error}); make one: --task seeds") from error
        _check(path, arrays, names, size)
        side = round((arrays["means"].shape[2] / 3) ** 0.5)
        mixtures = tuple(Mixture(*columns) for columns in zip(*arrays.values(), strict=True))
        return cls(tuple(names), mixtures, side, size, source)


def seeds_of(
    checkpoint: str, class_names: tuple[str, ...], *, given: Path | None = None, of_texts: bool = False
) -> ClassSeeds:
    """Those of a classifier: the file given, else NAME.seeds.npz beside the checkpoint, else the embedded CIFAR-10's.

    of_texts: its classes are texts, and are begun with seeds of any class. UserError where there are none for its
    classes, in its order.
    """
    beside = seeds_beside(checkpoint)
    path = given or (beside if beside.exists() else EMBEDDED)
    seeds = ClassSeeds.load(path)
    if seeds.class_names == class_names:
        return seeds
    if of_texts:
        return seeds.of_any(class_names)
    if path == EMBEDDED:
        raise UserError(
            f"seeds: there are none for this classifier's classes ({', '.join(class_names[:3])}, ...); fit some: "
            f"bigroc refine --task seeds --data DATA --out {beside}"
        )
    raise UserError(
        f"seeds: {path} is for {len(seeds.class_names)} classes ({', '.join(seeds.class_names[:3])}, ...), the "
        f"classifier has {len(class_names)} ({', '.join(class_names[:3])}, ...); they must be the same, in one order"
    )


def seeds_beside(checkpoint: str) -> Path:
    """NAME.seeds.npz, where a classifier's own seeds are looked for."""
    file = file_of(checkpoint)
    return file.with_name(file.stem + SUFFIX)


@dataclass(frozen=True)
class Start:
    """Where images that are made begin: a draw for each."""

    size: tuple[int, int]  # height, width, pixels
    draw: Callable[[int, torch.Generator], Tensor]  # class, generator -> float32 [3,H,W] in [0,1]

    def __call__(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """[n,3,H,W] for classes y [n] on the CPU, each by its own generator."""
        return torch.stack([self.draw(int(label), one) for label, one in zip(y, generators, strict=True)])


def open_start(kind: str, seeds: Callable[[], ClassSeeds], image_size: int) -> Start:
    """seeds; pca: along their principal directions; noise: uniform, image_size x image_size; else any image set.

    Of an image set each draw takes any one, whatever its class. seeds: called where they are wanted.
    """
    if kind == "noise":
        size = (image_size, image_size)
        return Start(size, lambda label, generator: torch.rand(3, *size, generator=generator))
    if kind in ("seeds", "pca"):
        drawn = seeds() if kind == "seeds" else seeds().along_principal()
        return Start((drawn.image_size, drawn.image_size), drawn.draw)
    images = open_images(kind)

    def any_image(label: int, generator: torch.Generator) -> Tensor:
        i = int(torch.randint(len(images), (), generator=generator))
        return to_float(images.read(i, i + 1))[0]

    return Start(images.size, any_image)


def _stored(name: str) -> type[np.floating]:
    return np.float16 if name in ("means", "factors") else np.float32


def _check(path: Path, arrays: dict[str, Tensor], names: Sequence[str], size: int) -> None:
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    fits = all(array.ndim == _ARRAYS[name] and array.isfinite().all() for name, array in arrays.items())
    if fits:
        classes, components, dim = arrays["means"].shape
        side = round((dim / 3) ** 0.5)
        fits = (
            classes == len(names)
            and all(array.shape[:2] == (classes, components) for array in arrays.values())
            and arrays["factors"].shape[2] == dim == 3 * side**2
            and size % side == 0
            and bool((arrays["weights"] >= 0).all() and (arrays["weights"].sum(1) > 0).all())
            and bool((arrays["noise"] >= 0).all())
        )
    if not fits:
        raise UserError(f"seeds: {path} holds arrays that do not fit ({shapes}); make it anew: --task seeds")
