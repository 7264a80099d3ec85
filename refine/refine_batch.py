"""Refining a block of stored images, and what it did to each of them.

Blocks have a fixed number of images, so that an image's result does not depend on how many came with it: convolutions
and matrix products take other kernels, with other rounding, for other numbers of images; batches of 1, 7 and 64 differ
in the last bits. In blocks of one size, the short ones filled up, they do not (bit-equal on the CPU in float32), and
torch.compile meets a single shape.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refine.network import confidence, consensus, images_first, noted_features
from refine.targets import pseudo, uncertain
from robust_models.attacks import PGD, Gradient, Loss
from robust_models.errors import UserError
from robust_models.images import Depth, from_float, to_float
from robust_models.threat import NORMS

_CPU_PIXELS_AT_ONCE, _GPU_PIXELS_AT_ONCE = 2**23, 2**26  # a few GB with all that gradients need
_CPU_PIXELS = 2**16  # where images/s of small networks level off: 64 images of 32x32, 1 of 256x256


class NotFinite(ArithmeticError):
    """The classifier gave infinite numbers or NaN, as logits or as a gradient, for image `index` of a batch."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"image {index}: the classifier's {what} are not finite")
        self.index, self.what = index, what


class Outcome(NamedTuple):
    """What refinement did to each image of a batch, [n] on the CPU, measured on the stored images before and after."""

    target: Tensor
    confidence_before: Tensor  # probability of the target
    confidence_after: Tensor
    loss_before: Tensor
    loss_after: Tensor
    on_target_before: Tensor  # True where the prediction is the target
    on_target_after: Tensor
    distance: Tensor  # norm of the change, pixels in [0,1]
    touched: Tensor  # False where the image was left alone


def block_size(device: torch.device, image_size: int, batch_size: int) -> int:
    """Images per block: on a GPU the batch size asked for; on the CPU what suits the classifier's image size."""
    if device.type != "cpu":
        return batch_size
    return max(1, min(64, _CPU_PIXELS // image_size**2))


def fitting_block(block: int, device: torch.device, size: tuple[int, int]) -> int:
    """As many images of `size` (height, width) as are worked on at once, `block` at most: memory has a bound."""
    most = _CPU_PIXELS_AT_ONCE if device.type == "cpu" else _GPU_PIXELS_AT_ONCE
    return max(1, min(block, most // (size[0] * size[1])))


def filled(batch: Tensor, size: int) -> Tensor:
    """batch [n,...] with its last row repeated until there are `size`."""
    missing = size - len(batch)
    return batch if missing == 0 else torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])


@dataclass(frozen=True)
class BatchRefiner:
    """The model, the steps, and how many images they take at once; images [n,3,H,W] come and go in their own depth."""

    model: nn.Module  # x in [0,1] -> logits, in eval mode (refine.network.together)
    attack: PGD
    device: torch.device
    block: int
    depth: Depth
    uncertain_below: float = 0.0

    def logits(self, pixels: Tensor) -> Tensor:
        """[n,classes] on the CPU, or [n,K,classes] of K classifiers, for n images, at most a block."""
        return images_first(self._logits(self._block(pixels)))[: len(pixels)].cpu()

    def logits_and_features(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same, and the features of each classifier, [n,D] on the CPU."""
        with noted_features(self.model) as features:
            logits = self.logits(pixels)
        return logits, [part[: len(pixels)].cpu() for part in features]

    def refine(self, pixels: Tensor, target: Tensor | None, logits: Tensor | None = None) -> tuple[Tensor, Outcome]:
        """Refined images and what became of them, for n images, at most a block.

        target [n] None: the model's own guesses. logits: what self.logits has said of these images, or None. NotFinite
        where the model gives numbers with which nothing can be done.
        """
        n = len(pixels)
        x = self._block(pixels)
        before = self._logits(x) if logits is None else images_first(filled(logits.to(self.device), self.block))
        seen_before = consensus(before)
        y = pseudo(seen_before) if target is None else filled(target.to(self.device), self.block)
        touched = ~uncertain(seen_before, self.uncertain_below)
        watched = WatchedGradient(self.attack.gradient)
        check_finite(before, "logits")
        refined = replace(self.attack, gradient=watched)(self.model, x, y)[:n]
        check_finite(watched.sums, "gradients")
        stored = _kept_where(pixels, touched[:n].cpu(), from_float(refined, self.depth).cpu())
        x_ref = self._block(stored)
        after = self._logits(x_ref)
        check_finite(after, "logits")
        seen_after = consensus(after)
        outcome = Outcome(
            y,
            confidence(seen_before, y),
            confidence(seen_after, y),
            self.attack.loss(before, y),
            self.attack.loss(after, y),
            seen_before.argmax(1) == y,
            seen_after.argmax(1) == y,
            NORMS[self.attack.norm].length(x_ref - x),
            touched,
        )
        return stored, Outcome(*(column[:n].cpu() for column in outcome))

    def _block(self, pixels: Tensor) -> Tensor:
        return filled(to_float(pixels.to(self.device)), self.block)

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        return self.model(x)


class WatchedGradient:
    """A gradient that remembers, without waiting for the device, for which images it was not finite."""

    def __init__(self, gradient: Gradient) -> None:
        self.gradient = gradient
        self.sums = torch.zeros(1)  # [N], not finite where a gradient was not

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        found, values = self.gradient(model, x, y, loss)
        self.sums = self.sums.to(x.device) + 0 * found.flatten(1).sum(dim=1)  # 0 * inf is NaN
        return found, values


def check_finite(values: Tensor, what: str) -> None:
    """NotFinite for the first image whose values [N,...] are not all finite."""
    bad = ~values.flatten(1).isfinite().all(dim=1) if values.ndim > 1 else ~values.isfinite()
    if bad.any():
        raise NotFinite(int(bad.int().argmax()), what)


@contextmanager
def naming(names: Sequence[str], ckpt: str) -> Iterator[None]:
    """Turns NotFinite into a message with the image's and the checkpoint's name."""
    try:
        yield
    except NotFinite as error:
        name = names[min(error.index, len(names) - 1)]
        raise UserError(
            f"ckpt: {ckpt}: its {error.what} are not finite for image {name}; nothing is written to the output. Look "
            "at the file with `bigroc models inspect`, or try --precision fp32"
        ) from error


def _kept_where(pixels: Tensor, touched: Tensor, refined: Tensor) -> Tensor:
    """The refined images, but pixels, bit for bit, where they were left alone."""
    result = refined.numpy().copy()
    left = ~touched.numpy()
    result[left] = pixels.numpy()[left]
    return torch.from_numpy(result)
