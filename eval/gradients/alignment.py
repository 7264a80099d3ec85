"""Perceptual alignment as a number: do a classifier's input gradients lie along the data, as those of a refiner must?

At an image x of class y, with a target class t, let g = grad_x (z_t(x) - z_y(x)) be the direction in which the log-odds
of t against y grow fastest. Two scores, both means over images:

    alignment     cos(g, D_t(x) - D_y(x))        D_c(x) = sum_i w_i x_i over reference images of class c,
                                                 w = softmax_i(-|x - x_i|^2 / (2 sigma^2))
    on-manifold   |P g|^2 / |g|^2                P: onto the span of the k nearest reference images about their mean

D_c is the best denoiser of the reference images of class c with Gaussian noise sigma (the posterior mean). By Tweedie's
formula D_t(x) - D_y(x) = sigma^2 grad_x log(p_t(x) / p_y(x)), p_c being their smoothed distribution: the gradient that
the Bayes classifier has. Ganz et al. 2023 (arXiv:2207.11378) train gradients towards such directions, given by a
diffusion model; here the score is exact and needs no weights. One less the second score is the off-manifold share rho
of Srinivas et al. 2023 (arXiv:2305.19101), for whom a small rho is what makes gradients readable.

A random direction has alignment 0 and the share (k - 1) / d, d being the pixels times channels.
"""

from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn
from tqdm import tqdm

from eval.robust.accuracy import Labelled, first_logits, images_and_labels, probability_warnings
from eval.robust.stages import device_of
from refine.network import together
from robust_models import NORMS, UserError, load_dataset, to_float
from robust_models.attacks import check_labels, frozen_eval, gradient_and_loss
from robust_models.checkpoints.flags import load_classifier
from robust_models.runtime.device import exact_fp32, pick_device, place
from robust_models.runtime.seeds import DRAW, generator

SIGMA = 0.5
NEIGHBOURS = 128
LIMIT = 512
READ_AT_ONCE = 2000  # reference images
SAME = 1e-6  # mean squared difference of the pixels below which a reference image is the image itself
RANK = 1e-9  # of the largest eigenvalue: below it a direction is rounding


@dataclass(frozen=True)
class Mean:
    """Of a score over images, with its 95 % interval: the error of sampling these, the reference staying as it is."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Of values [N], by the normal approximation."""
        mean, n = float(values.mean()), len(values)
        reach = 1.96 * float(values.std()) / n**0.5 if n > 1 else float("inf")
        return cls(mean, (mean - reach, mean + reach))


@dataclass(frozen=True)
class GradientAlignment:
    """The two scores of the module's docstring over n images, and what they were measured with."""

    n: int
    n_reference: int
    alignment: Mean
    on_manifold: Mean
    by_chance: float  # on_manifold of a random direction
    neighbours: int
    sigma: float
    each: tuple[Tensor, Tensor]  # both scores of every image, [N]
    warnings: tuple[str, ...] = ()

    @property
    def lift(self) -> float:
        """The share on the manifold in units of a random direction's: comparable across image sizes."""
        return self.on_manifold.value / self.by_chance


def gradient_alignment(
    model: nn.Module | str | PathLike[str],
    data: Labelled,
    reference: Labelled | None = None,
    *,
    limit: int | None = LIMIT,
    sigma: float = SIGMA,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
) -> GradientAlignment:
    """Both scores of any classifier: what `bigroc eval gradients` measures.

    model, data, device: as for robust_accuracy. reference: labelled images of the same size that stand for the data
    (None: `data` itself, all of it); an image of `data` that is among them does not count for itself. limit: images of
    `data` whose gradients are taken. sigma: of the noise, pixels in [0,1]. Targets are drawn by seed, one for each
    image, from the other classes of the reference. UserError for whatever does not fit.
    """
    if not isinstance(model, nn.Module):
        model = place(load_classifier(str(model))[0], pick_device(device or "auto"), "fp32")
    elif device is not None:
        model = model.to(pick_device(device))
    x, y = images_and_labels(data, model, None if reference is None else limit)
    if isinstance(reference, str | PathLike):
        reference = load_dataset(str(reference), "train")
    x_ref, y_ref = (x, y) if reference is None else images_and_labels(reference, model)
    if x.shape[1:] != x_ref.shape[1:]:
        raise UserError(f"reference: its images are {list(x_ref.shape[1:])}, those of data {list(x.shape[1:])}")
    if not 0 < sigma < float("inf"):
        raise UserError(f"sigma: {sigma} is no noise; give a number above 0 (pixels in [0,1])")
    x, y = x[:limit], y[:limit]
    seen, device_here = together(model), device_of(model)
    with exact_fp32():
        sample = first_logits(seen, x)
        for labels in (y, y_ref):
            check_labels(labels, len(labels), sample.shape[1])
        target = draw_targets(y, y_ref, seed)
        near = squared_distances(x, x_ref, device_here)
        along = class_direction(near, x_ref, y_ref, target, y, sigma)
        nearest = nearest_images(near, neighbours)
        cosine, share = torch.empty(len(x)), torch.empty(len(x))
        with frozen_eval(model):
            for rows in tqdm(torch.arange(len(x)).split(batch_size), desc="gradients", unit="batch", mininterval=0.5):
                pixels = to_float(x[rows].to(device_here))
                g = odds_gradient(seen, pixels, y[rows].to(device_here), target[rows].to(device_here), rows)
                cosine[rows] = torch.cosine_similarity(g, along[rows], eps=1e-30).cpu()
                share[rows] = share_in_span(g, to_float(x_ref[nearest[rows]].to(device_here))).cpu()
    return GradientAlignment(
        n=len(x),
        n_reference=len(x_ref),
        alignment=Mean.of(cosine),
        on_manifold=Mean.of(share),
        by_chance=(nearest.shape[1] - 1) / x[0].numel(),
        neighbours=nearest.shape[1],
        sigma=sigma,
        each=(cosine, share),
        warnings=tuple(probability_warnings(sample)),
    )


def draw_targets(y: Tensor, y_ref: Tensor, seed: int) -> Tensor:
    """For each y [N] another class of y_ref, each as likely, by seed and the image's place: int64 [N]."""
    classes = y_ref.unique()
    if len(classes) < 2:
        raise UserError(
            f"reference: all of its images are of class {int(classes[0])}; gradients need another to aim at"
        )
    draws = torch.rand(len(y), generator=generator("cpu", seed, DRAW, 0))
    own = torch.searchsorted(classes, y).clamp_max(len(classes) - 1)
    known = classes[own] == y
    choices = len(classes) - known.long()
    drawn = (draws * choices).long()
    return classes[drawn + (known & (drawn >= own)).long()]


def squared_distances(x: Tensor, x_ref: Tensor, device: torch.device) -> Tensor:
    """|x - x_i|^2 in pixels of [0,1], float32 [N,M]; infinite where a reference image is the image itself."""
    rows = _flat(x, device)
    blocks = []
    for block in x_ref.split(READ_AT_ONCE):
        columns = _flat(block, device)
        squares = rows.square().sum(1, keepdim=True) + columns.square().sum(1)
        blocks.append((squares - 2 * rows @ columns.T).clamp_min(0))
    near = torch.cat(blocks, dim=1)
    return near.masked_fill(near < SAME * rows.shape[1], torch.inf)


def _flat(x: Tensor, device: torch.device) -> Tensor:
    """[N,d] about mid-grey, where squares are small and so is their rounding."""
    return to_float(x.to(device)).flatten(1) - 0.5


def class_direction(near: Tensor, x_ref: Tensor, y_ref: Tensor, target: Tensor, y: Tensor, sigma: float) -> Tensor:
    """D_t(x) - D_y(x) of the module's docstring, [N,d], from the distances `near` [N,M].

    UserError where a class has no reference image other than the image itself.
    """
    labels = y_ref.to(near.device)
    weights = _weights(near, labels, target, sigma) - _weights(near, labels, y, sigma)
    found = torch.zeros(len(near), x_ref[0].numel(), device=near.device)
    for block, of_block in zip(x_ref.split(READ_AT_ONCE), weights.split(READ_AT_ONCE, dim=1), strict=True):
        found += of_block @ _flat(block, near.device)  # the weights sum to 0, so that mid-grey drops out
    return found


def _weights(near: Tensor, labels: Tensor, wanted: Tensor, sigma: float) -> Tensor:
    """softmax(-near / (2 sigma^2)) over the reference images of the wanted class, [N,M]."""
    wanted = wanted.to(near.device)
    exponent = (-near / (2 * sigma**2)).masked_fill(labels != wanted[:, None], -torch.inf)
    empty = exponent.amax(dim=1).isinf()
    if empty.any():
        raise UserError(f"reference: class {int(wanted[empty][0])} has no image other than one that is measured")
    return exponent.softmax(dim=1)


def nearest_images(near: Tensor, neighbours: int) -> Tensor:
    """Numbers [N,k] of the k reference images nearest to each image, k at most `neighbours` and the images there are.

    UserError where there are fewer than 2.
    """
    k = min(neighbours, int(near.isfinite().sum(dim=1).min()))
    if k < 2:
        raise UserError(f"neighbours: {k} images span no direction; give at least 2, and a larger reference")
    return near.topk(k, dim=1, largest=False).indices.cpu()


def odds_gradient(model: nn.Module, x: Tensor, y: Tensor, target: Tensor, numbers: Tensor) -> Tensor:
    """grad_x (z_target - z_y) at length 1, [n,d]; 0 where it is flat. numbers [n] name images in messages."""
    pairs = torch.stack([y, target], dim=1)
    gradient, _ = gradient_and_loss(model, x, pairs, lambda logits, pair: logits.gather(1, pair).diff(dim=1)[:, 0])
    bad = numbers[(~gradient.flatten(1).isfinite().all(dim=1)).cpu()].tolist()
    if bad:
        raise UserError(f"model: the input gradient of image {bad[0]} is not finite ({len(bad)} such in the batch)")
    return NORMS["l2"].steepest(gradient).flatten(1)


def share_in_span(g: Tensor, images: Tensor) -> Tensor:
    """|P g|^2 for g [n,d] of length 1, P onto the span of the differences among images [n,k,...]: in [0,1], [n]."""
    points = images.flatten(2)
    centred = (points - points.mean(dim=1, keepdim=True)).double()
    values, vectors = torch.linalg.eigh(centred @ centred.mT)  # of the k x k products, not of d x d
    along = (vectors.mT @ (centred @ g.double()[:, :, None]))[:, :, 0]
    kept = values > RANK * values.amax(dim=1, keepdim=True)
    return (along.square() / values.where(kept, 1)).where(kept, 0).sum(dim=1).clamp(0, 1).float()
