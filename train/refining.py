"""What the classifier is worth as a refiner while it trains, in a feature space that takes no part in the training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_models.attacks import PGD, frozen_eval
from robust_models.classifier import RobustClassifier
from robust_models.datasets import Dataset
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.images import to_float, to_u8
from robust_models.metrics.kernel_resampled import SetReference, measure_of, reference_for, resampler_for
from train.config import TrainConfig
from train.parallel import part
from train.start import open_generated
from train.validation import BATCH, Together


@dataclass(frozen=True)
class Refining:
    """A generator's images, and how far they are from held-out ones before they are refined."""

    images: Dataset
    attack: PGD  # towards the images' classes: the loop of `bigroc refine`
    judge: FeatureExtractor
    reference: SetReference
    raw: float
    batch: int  # images at once, so that an evaluation wants no more memory than a step

    @classmethod
    def open(cls, config: TrainConfig, held_out: Dataset, device: torch.device) -> "Refining":
        """UserError where images or judge do not fit those held out."""
        fields, batch = config.validate.refine, min(BATCH, config.batch_size)
        assert fields.images is not None
        images = open_generated(fields.images, held_out, "validate.refine.images")[: fields.limit]
        try:
            judge = open_features(fields.judge, device=device)
            if judge.image_size not in (None, held_out.image_size):
                raise UserError(
                    f"{fields.judge} takes {judge.image_size} pixels, the images have {held_out.image_size}"
                )
        except UserError as error:
            raise UserError(f"validate.refine.judge: {error}") from error
        real, raw = (
            torch.cat([judge(x_u8.to(device)).cpu() for x_u8 in data.x_u8.split(batch)])
            for data in (held_out[: fields.limit], images)
        )
        reference = reference_for(real, len(images))
        attack = PGD(fields.eps, 1.5 * fields.eps / fields.steps, fields.steps, targeted=True, box="last")
        return cls(images, attack, judge, reference, _distance(raw, reference), batch)

    def scores(self, model: RobustClassifier, together: Together) -> dict[str, float]:
        """Their distance, raw and after this classifier has refined them; each rank refines a part of every batch."""
        ranks, device = together.ranks, model.mean.device
        features = torch.zeros(len(self.images), self.judge.dim)
        with frozen_eval(model):
            for rows in torch.arange(len(self.images)).split(self.batch):
                together.between()
                own = part(rows, ranks)
                if len(own) == 0:
                    continue
                x, y = to_float(self.images.x_u8[own].to(device)), self.images.y[own].to(device)
                features[own] = self.judge(to_u8(self.attack(model, x, y))).cpu()
        refined = _distance(ranks.sum(features), self.reference)
        return {f"raw_{self.measure}": self.raw, f"refined_{self.measure}": refined}

    @property
    def measure(self) -> str:
        """ "kid" or "frechet"."""
        return measure_of(self.reference)

    def distance(self, scores: dict[str, float]) -> float:
        """Of the refined images, among the scores: the smaller the better."""
        return scores[f"refined_{self.measure}"]


def _distance(features: Tensor, reference: SetReference) -> float:
    once = torch.ones(len(features), dtype=torch.int64).numpy()
    return resampler_for(features, reference).distance(once)
