"""Robust accuracy: the share of images classified rightly, and still so under every attempt of an attack."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri
from torch import Tensor, nn
from tqdm import tqdm

from eval.robust.attacks.budget import Attempt, Plan
from eval.robust.progress import Progress, StageProgress
from robust_models import NORMS, UserError, to_float
from robust_models.attacks import frozen_eval
from robust_models.runtime.distributed import Ranks
from robust_models.threat import NormName, ThreatModel

RELATIVE_TOLERANCE = 1e-4  # of eps, and
ABSOLUTE_TOLERANCE = 1e-6  # the float32 rounding of a pixel, many times
ALONE = Ranks()


@dataclass(frozen=True)
class Robustness:
    """Per image, in the order of the set: bool [N] on the CPU."""

    correct: Tensor  # as it is
    robust: Tensor  # and under every attempt: the worst case over restarts


@dataclass(frozen=True)
class Ball(ThreatModel):
    """Where an adversarial image counts."""

    norm: NormName

    def holds(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """bool [N]: x_adv is within eps of x, up to 1e-4 of eps and 1e-6. False where a pixel is not a number."""
        return NORMS[self.norm].length(x_adv - x) <= self.eps * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE


@dataclass(frozen=True)
class Stage:
    """One pass over the images that are still rightly classified."""

    title: str
    attempt: Attempt | None = None  # None: the images as they are
    ball: Ball | None = None  # None: whatever the attempt returns counts
    after: int | None = None  # the number of the stage whose survivors it begins with (None: the one before it)
    images: tuple[Tensor, Tensor] | None = None  # x_u8 and y of other images than the run's: it begins with all of them


@dataclass(frozen=True)
class Radius:
    """One ball: what is planned there, which stages of the chain are its own, and which one is its last or stands in
    for it (at eps 0, the clean pass).
    """

    ball: Ball
    plan: Plan
    stages: slice
    last: int


def chain(plans: Mapping[Ball, Plan]) -> tuple[list[Stage], list[Radius]]:
    """The clean pass, then every attempt in every ball; at eps 0 the clean pass is all.

    Balls of one norm come one after the other, growing, and are one chain: an image broken inside a ball is broken
    inside every larger one. Each norm begins anew with what is rightly classified.
    """
    stages, radii = [Stage("clean")], []
    several_norms = len({ball.norm for ball in plans}) > 1
    for ball, plan in plans.items():
        first = len(stages)
        previous = radii[-1].last if radii and radii[-1].ball.norm == ball.norm else 0
        where = f" at {ball}" if several_norms else f" at eps {ball.eps:g}" if len(plans) > 1 else ""
        for number, (label, attempt) in enumerate(plan.attempts.items() if ball.eps else (), 1):
            title = f"attack {number}/{len(plan.attempts)} ({label}){where}"
            stages.append(Stage(title, attempt, ball, after=previous))
            previous = len(stages) - 1
        radii.append(Radius(ball, plan, slice(first, len(stages)), previous))
    return stages, radii


def measure_robustness(
    model: nn.Module, x_u8: Tensor, y: Tensor, attempts: Sequence[Attempt], *, batch_size: int = 250
) -> Robustness:
    """Clean and worst-case correctness of model (pixels [0,1] -> logits) on x_u8 uint8 [N,3,H,W], y int64 [N].

    Only the images that every earlier attempt left rightly classified meet the next one. Runs in eval mode on the
    model's device and leaves modes and parameters as found; progress on stderr. UserError for logits that are not
    finite.
    """
    stages = [Stage("clean"), *(Stage(f"attack {i}/{len(attempts)}", attempt) for i, attempt in enumerate(attempts, 1))]
    passed = run_stages(model, x_u8, y, stages, batch_size=batch_size)
    return Robustness(passed[0].survived, passed[-1].survived)


def run_stages(
    model: nn.Module,
    x_u8: Tensor,
    y: Tensor,
    stages: Sequence[Stage],
    *,
    batch_size: int = 250,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> list[StageProgress]:
    """What each stage left rightly classified; each begins with the survivors of the one before, or as it says.

    A progress that has been under way goes on where it was, with the batches that an uninterrupted run would have.
    Ranks take as many batches at a time as they are, one each: the same batches, whatever their number, and the same
    progress on all of them.
    """
    progress = Progress() if progress is None else progress
    with frozen_eval(model):
        for number, stage in enumerate(stages):
            images = (x_u8, y) if stage.images is None else stage.images
            _pass(model, *images, stage, batch_size, progress, number, ranks)
    return progress.stages


def _pass(
    model: nn.Module,
    x_u8: Tensor,
    y: Tensor,
    stage: Stage,
    batch_size: int,
    progress: Progress,
    number: int,
    ranks: Ranks,
) -> None:
    """One stage, the number-th of the progress."""
    if number == 0 or stage.images is not None:
        alive = torch.ones(len(y), dtype=torch.bool)
    else:
        alive = progress.stages[number - 1 if stage.after is None else stage.after].survived
    if number == len(progress.stages):
        progress.stages.append(StageProgress(torch.zeros_like(alive), int(alive.sum())))
    so_far = progress.stages[number]
    index = alive.nonzero().squeeze(1)
    left = index[so_far.done :]
    with tqdm(
        total=len(index),
        initial=so_far.done,
        desc=stage.title,
        unit="img",
        mininterval=0.5,
        disable=not ranks.is_first,
    ) as bar:
        for part in left.split(batch_size * ranks.world) if len(left) else ():
            started = time.perf_counter()
            found = torch.zeros(len(part) + 1, dtype=torch.int64)  # which are right, and how many were fooled outside
            own = slice(ranks.rank * batch_size, min((ranks.rank + 1) * batch_size, len(part)))
            if len(batch := part[own]):
                found[own], found[-1] = _judge(model, x_u8[batch], y[batch], batch, stage)
            found = ranks.sum(found)
            so_far.survived[part] = found[:-1].bool()
            so_far.outside += int(found[-1])
            so_far.done += len(part)
            so_far.wall_s += time.perf_counter() - started
            progress.save()
            bar.update(len(part))


def _judge(model: nn.Module, x_u8: Tensor, y: Tensor, index: Tensor, stage: Stage) -> tuple[Tensor, int]:
    """Right after the stage, bool [n]; and how many were fooled by an image outside the ball, which does not count.

    An attacked image is clipped to [0,1] first: x lies in the box, so no pixel moves away from it.
    """
    device = device_of(model)
    x, y = to_float(x_u8.to(device)), y.to(device)
    x_adv = x if stage.attempt is None else stage.attempt(model, x, y, index).clamp(0, 1)
    inside = torch.ones_like(y, dtype=torch.bool) if stage.ball is None else stage.ball.holds(x_adv, x)
    with torch.no_grad():
        logits = model(x_adv)
    check_finite(logits[inside], index[inside.cpu()], stage.title)
    fooled = logits.argmax(1) != y
    return ~(fooled & inside).cpu(), int((fooled & ~inside).sum())


def check_finite(logits: Tensor, index: Tensor, when: str) -> None:
    """UserError where a row of logits [n,classes] holds NaN or infinity; index [n]: the numbers of the images."""
    bad = index[(~logits.isfinite().all(dim=1)).cpu()].tolist()
    if bad:
        which = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise UserError(
            f"model: the logits of image {which} are not finite ({when}); such a classifier cannot be measured: "
            "look for NaN or infinity in its weights, or for an overflow in its precision"
        )


def device_of(model: nn.Module) -> torch.device:
    """Of the first parameter or buffer: exported programs may have none of the former."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a fraction: sampling error of N images, not of the attack's randomness.

    Wilson 1927; inside [0,1] and not empty at 0 or n successes, as the normal approximation is.
    """
    z = float(ndtri(0.5 + confidence / 2))
    share = successes / n
    centre = share + z**2 / (2 * n)
    reach = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    scale = 1 + z**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
