"""The second stage that makes a robust classifier generate: its energy learns what is real from images that it made.

The energy of an image is -logsumexp of its logits, and the image is "real" with probability sigmoid(-energy). Beside
the cross-entropy on attacked images, a step minimises softplus(energy) of real images and softplus(-energy) of images
that climbed the logit of a class from a blurred start: what gradients paint that no photograph has is unlearnt. The
climb is longer as soon as the classifier tells the two apart (X. Yin et al. 2025, "Scalable energy-based models via
adversarial training", arXiv:2510.13872). There the starts are other photographs; here they may be the seeds that
generation begins with, so that no further images are needed.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.attacks import PGD, energy, frozen_eval, negative_logit
from robust_models.class_seeds import Start, open_start, seeds_beside, seeds_of
from robust_models.classifier import STARTS, Generation, RobustClassifier
from robust_models.datasets import Dataset
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.images import to_float, to_u8
from robust_models.metrics.kernel_resampled import measure_of, reference_for, resampler_for
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.files import whole_file
from robust_models.runtime.seeds import DRAW, EVALUATION, generator
from train.augment import augment
from train.config import EnergyConfig, TrainConfig, at
from train.parallel import ALONE, whole
from train.state import Progress

BATCH = 250  # images that are judged at once, where a training step has as many
SHOWN = 10  # classes
LENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)  # of a climb that is judged, in lengths of training's


class Pair(NamedTuple):
    """Real images and as many that the classifier made, both of the labels y."""

    real: Tensor
    made: Tensor
    y: Tensor


def auc(higher: Tensor, lower: Tensor) -> float:
    """How often one of `higher` [n] lies above one of `lower` [m], ties half: the area under the ROC curve."""
    above = (higher[:, None] > lower).double() + (higher[:, None] == lower).double() / 2
    return float(above.mean())


def climb(config: EnergyConfig, steps: int) -> PGD:
    """So many steps up the logit of the class, each of L2 length step_size, in [0,1] and no ball."""
    radius = float("inf")
    return PGD(radius, config.step_size, steps, norm="unconstrained", targeted=True, loss=negative_logit)


@dataclass
class Energy:
    """The energy's part of every step, and the curriculum of its climbs."""

    config: TrainConfig
    start: Start
    judge: FeatureExtractor
    progress: Progress  # of the run: what the curriculum knows is saved with it
    seen: dict[str, float] = field(default_factory=dict)  # by the last loss; it counts once its step is done

    @classmethod
    def open(cls, config: TrainConfig, model: RobustClassifier, progress: Progress) -> "Energy":
        """UserError where starts or judge do not fit the classifier's images and classes."""
        fields = config.energy
        judge = open_features(fields.judge, device=model.mean.device)
        if judge.image_size not in (None, model.image_size):
            raise UserError(
                f"energy.judge: {fields.judge} takes {judge.image_size} pixels, the images have {model.image_size}"
            )
        return cls(config, _start(config, model), judge, progress)

    @property
    def steps(self) -> int:
        """Of the next climb."""
        return self.config.energy.first_steps + self.progress.longer

    @property
    def batch(self) -> int:
        """Images at once in an evaluation, which then wants no more memory than a step."""
        return min(BATCH, self.config.batch_size)

    def pair(self, victim: nn.Module, x_u8: Tensor, y: Tensor, step: int, draws: torch.Generator, ranks: Ranks) -> Pair:
        """This rank's: its real images, lightly augmented, and one made of each one's class. y: class indices [n]."""
        fields, n = self.config.energy, len(y)
        first = (step * ranks.world + ranks.rank) * n
        draw = [generator("cpu", self.config.seed, DRAW, first + i) for i in range(n)]
        start = self.start(y.cpu(), draw).to(x_u8.device)
        made = climb(fields, self.steps).unchecked(victim, start, y)
        return Pair(augment(to_float(x_u8), fields.augment, draws, ranks), made, y)

    def loss(self, model: nn.Module, pair: Pair, share: float, ranks: Ranks = ALONE) -> Tensor:
        """The mean of both binary losses, weighted as at the finished share of the run."""
        logits = model(torch.cat([pair.real, pair.made]))
        real, made = energy(logits).chunk(2)
        with torch.no_grad():
            of_class = -negative_logit(logits.float(), torch.cat([pair.y, pair.y]))
            of_real, of_made = (whole(part, ranks) for part in of_class.chunk(2))
            self.seen = {
                "climb_steps": float(self.steps),
                "auc": auc(of_real, of_made),
                "energy_real": float(whole(real, ranks).mean()),
                "energy_made": float(whole(made, ranks).mean()),
            }
        return at(self.config.energy.weight, share) * (F.softplus(real).mean() + F.softplus(-made).mean())

    def note(self, share: float) -> None:
        """After a step at the finished share of the run: a full window of AUCs above the threshold makes climbs longer
        by a step, and begins anew.
        """
        fields, progress = self.config.energy, self.progress
        progress.aucs = [*progress.aucs, self.seen["auc"]][-fields.window :]
        average = sum(progress.aucs) / len(progress.aucs)
        progress.energy = self.seen | {"auc": average}
        full = len(progress.aucs) == fields.window
        if full and average >= at(fields.auc, share) and self.steps < at(fields.most_steps, share):
            progress.longer, progress.aucs = progress.longer + 1, []

    def scores(self, model: RobustClassifier, held_out: Dataset, between: Callable[[], None]) -> dict[str, float]:
        """How far images made of the held-out images' classes are from these, at the best length of a climb; and the
        median energy of the held-out ones.
        """
        n = min(self.config.energy.images, len(held_out))
        parts = [held_out[first : min(first + self.batch, n)].x_u8 for first in range(0, n, self.batch)]
        reference = reference_for(torch.cat([self.judge(x_u8) for x_u8 in parts]).cpu(), n)
        with torch.no_grad(), frozen_eval(model):
            of_real = torch.cat([energy(model(to_float(x_u8.to(model.device)))).cpu() for x_u8 in parts])
        counts = sorted({max(1, round(length * self.steps)) for length in LENGTHS})
        made: dict[int, list[Tensor]] = {count: [] for count in counts}
        for first in range(0, n, self.batch):
            y = held_out[first : min(first + self.batch, n)].y
            for count, x in self.made(model, y, first, counts, between).items():
                made[count].append(self.judge(to_u8(x)).cpu())
        ones = torch.ones(n, dtype=torch.int64).numpy()
        distances = {
            count: resampler_for(torch.cat(features), reference).distance(ones) for count, features in made.items()
        }
        best = min(counts, key=distances.__getitem__)
        return {
            f"generation_{measure_of(reference)}": distances[best],
            "generation_steps": float(best),
            "median_energy": float(of_real.median()),
        }

    def generation(self, scores: dict[str, float]) -> Generation:
        """What the file of a classifier with these scores says of making images with it."""
        fields, steps = self.config.energy, int(scores["generation_steps"])
        start = fields.start if fields.start in STARTS else "images"
        return Generation(fields.step_size, steps, scores["median_energy"], start)

    def keep_seeds(self, checkpoint: Path) -> None:
        """Puts the seeds beside init, where there are some, beside the classifier that learned from them."""
        seeds = seeds_beside(str(self.config.init))
        if self.config.energy.start in ("seeds", "pca") and seeds.exists():
            with whole_file(seeds_beside(str(checkpoint))) as partial:
                shutil.copyfile(seeds, partial)

    def shortfall(self, scores: dict[str, float]) -> str:
        """What is to be said of the best classifier's scores where even these are below the floor; else empty."""
        if not scores or self.selection(scores) >= 0:
            return ""
        return (
            f"no classifier reached energy.floor {self.config.energy.floor:g}: the most robust one is kept, "
            f"{scores['robust_accuracy']:.1%} under attack; a smaller energy.weight costs less accuracy"
        )

    def selection(self, scores: dict[str, float]) -> float:
        """Above 0, the more the nearer, where the robust accuracy is at the floor; else below 0, and by accuracy."""
        if scores["robust_accuracy"] < self.config.energy.floor:
            return scores["robust_accuracy"] - 1
        distance = next(value for name, value in scores.items() if name in ("generation_frechet", "generation_kid"))
        return 1 / (1 + max(0.0, distance))

    def made(
        self, model: RobustClassifier, y: Tensor, first: int, counts: list[int], between: Callable[[], None]
    ) -> dict[int, Tensor]:
        """Images of the classes y after each of the counts of steps; number first + i has starts of its own."""
        draw = [generator("cpu", self.config.seed, EVALUATION, first + i) for i in range(len(y))]
        y = y.to(model.mean.device)
        x = self.start(y.cpu(), draw).to(y.device)
        found = {}
        with frozen_eval(model):
            for step, iterate in enumerate(climb(self.config.energy, counts[-1]).iterates(model, x, y, x)):
                between()
                if step in counts:
                    found[step] = iterate.x_adv.detach()
        return found

    def picture(self, model: RobustClassifier) -> Tensor:
        """Four images of each of the first classes, uint8 [3,4*H,C*W], at the length of training's climbs."""
        classes = min(SHOWN, len(model.class_names))
        y = torch.arange(classes).repeat(4)
        steps = max(1, self.steps)
        parts = [
            self.made(model, part, i * self.batch, [steps], lambda: None)[steps]
            for i, part in enumerate(y.split(self.batch))
        ]
        x = to_u8(torch.cat(parts)).cpu()
        rows = [torch.cat(list(row), dim=2) for row in x.split(classes)]
        return torch.cat(rows, dim=1)


def _start(config: TrainConfig, model: RobustClassifier) -> Start:
    """Where climbs begin. UserError where that has another size than the classifier's images."""
    init, kind, side = config.init, config.energy.start, model.image_size
    assert init is not None
    start = open_start(kind, lambda: seeds_of(init, model.class_names), side)
    if start.size != (side, side):
        height, width = start.size
        raise UserError(f"energy.start: {kind} has images of {height}x{width}, the classifier's are {side}x{side}")
    return start
