"""Sampling in blocks of fixed images: block b is images b * size to (b + 1) * size - 1, whatever of it is asked for.

So shards, ranks and the batches of refinement change no bit, not even where a network mixes the images of its batch.
The noise of image k follows from (seed, k). What a generator draws besides comes from PyTorch's, NumPy's and Python's
own random numbers, which are seeded for each block and then put back.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from robust_models.checkpoints.programs.program import reason
from robust_models.errors import UserError
from robust_models.images import to_u8
from robust_models.images.pixels import GREY_LEVEL, check_pixels
from robust_models.runtime.seeds import BLOCK, DRAW, generator

Size = tuple[int, int]  # height, width in pixels


class Sampler(Protocol):
    """What makes images."""

    @property
    def num_classes(self) -> int | None:
        """How many classes it takes; None: it takes none."""
        ...

    @property
    def numbers(self) -> Mapping[str, int]:
        """Its classes by the names that it has for them, in small letters; empty where it names none."""
        ...

    @property
    def batch(self) -> int | None:
        """The only number of images that it makes at once; None: any."""
        ...

    def __call__(self, generators: Sequence[torch.Generator], y: Tensor | None, *, quick: bool = False) -> Tensor:
        """An image from each generator of random numbers, [n,1 or 3,H,W] float in [0,1].

        y [n] are its own classes. quick: only the size counts, the images may be worse.
        """
        ...


class Opened(NamedTuple):
    """A sampler, where it lies, and the fingerprint of the files that it was read from."""

    sampler: Sampler
    path: Path
    files: str


@dataclass(frozen=True)
class Sampling:
    """Which images a sampler is to make: of these classes in turn, from this seed."""

    spec: str  # the generator as the user called it, for messages
    sampler: Sampler
    classes: Tensor | None  # its own numbers of them, int64 [K]
    seed: int
    device: torch.device

    def block(self, first: int, count: int, *, quick: bool = False) -> Tensor:
        """Images first to first + count - 1, [n,3,H,W] float in [0,1] on the CPU. UserError for what is none."""
        index = range(first, first + count)
        y = None if self.classes is None else self.classes[torch.tensor(index) % len(self.classes)]
        generators = [torch.Generator().manual_seed(seed) for seed in self.noise_seeds(first, count)]
        with _own_random_numbers(generator("cpu", self.seed, BLOCK, first).initial_seed(), self.device):
            try:
                x = self.sampler(generators, y, quick=quick).float().cpu()
            except UserError as error:
                raise UserError(f"generator: {self.spec}: {error}") from error
            except Exception as error:  # another library's code
                raise UserError(
                    f"generator: {self.spec} failed at {count} images ({reason(error)}); --debug shows where, "
                    "--generator-batch changes how many"
                ) from error
        if x.ndim != 4 or len(x) != count or x.shape[1] not in (1, 3):
            raise UserError(
                f"generator: {self.spec} gave {list(x.shape)} for {count} images; expected [{count},3,height,width]"
            )
        if not (finite := x.flatten(1).isfinite().all(dim=1)).all():
            bad = first + int(finite.int().argmin())
            raise UserError(
                f"generator: {self.spec}: image {bad} holds NaN or infinite numbers; check weights and precision"
            )
        return x.expand(-1, 3, -1, -1)

    def noise_seeds(self, first: int, count: int) -> list[int]:
        """The seeds of the noise of these images, of which no two are equal.

        PyTorch's numbers on the CPU have 2**32 seeds: drawn for each image, two of 100,000 would probably meet.
        """
        start = generator("cpu", self.seed, DRAW, 0).initial_seed() + first
        return [(start + i) % 2**32 for i in range(count)]

    def first_look(self, count: int) -> Size:
        """The size of the images. `count` of them are made twice: UserError where they differ by a grey level.

        By less, kernels of a GPU may.
        """
        first, again = (self.block(0, count, quick=True) for _ in range(2))
        apart = float((first - again).abs().max()) if first.shape == again.shape else 1.0
        if apart > GREY_LEVEL:
            raise UserError(
                f"generator: {self.spec} makes other images of the same noise (by up to {apart:.2g}), so that no run "
                "could be continued; let it draw from the noise that it gets, or from torch's, numpy's or random's own "
                "numbers, which are seeded for it"
            )
        height, width = first.shape[-2:]
        check_pixels(height, width, source=f"generator: {self.spec}")
        return height, width


class Blocks:
    """(start, stop) -> images start to stop - 1, uint8 [n,3,H,W], from blocks of which the last one made is kept."""

    def __init__(self, sampling: Sampling, count: int, size: Size) -> None:
        self.sampling = sampling
        self.count = count  # images in a block
        self.size = size
        self._last = (-1, torch.empty(0))

    def __call__(self, start: int, stop: int) -> Tensor:
        numbers = range(start // self.count, (stop - 1) // self.count + 1)
        return torch.cat([self._block(b)[max(0, start - b * self.count) : stop - b * self.count] for b in numbers])

    def _block(self, b: int) -> Tensor:
        if self._last[0] != b:
            x = self.sampling.block(b * self.count, self.count)
            if x.shape[-2:] != self.size:
                raise UserError(
                    f"generator: {self.sampling.spec} gave images of {x.shape[-1]}x{x.shape[-2]} after others of "
                    f"{self.size[1]}x{self.size[0]}; all must have one size"
                )
            self._last = b, to_u8(x)
        return self._last[1]


@contextmanager
def _own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """The random numbers that every library shares are seeded inside, and put back as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  (a generator may use them)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
