"""--eps auto: the search of eps_search.py on an image set, and what it is worth on the images that took no part."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from refine.config import RefineConfig
from refine.eps_search import Curve, halves, search, tell
from refine.outcome import Refinery
from robust_models.attacks import PGD
from robust_models.checkpoints import find
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.statistics import check_images
from robust_models.images import ImageSet, open_images, to_float, to_u8
from robust_models.metrics import FrechetStatistics, frechet_distance
from robust_models.runtime.hashes import sha256_of

MAX_REFERENCE = 10_000  # images of the reference, spread evenly
JUDGE_BATCH = 100

Pixels = Callable[[int], Tensor]  # index of an image -> [1,3,H,W] in the set's depth


@dataclass(frozen=True)
class EpsSearch:
    """A judge and a reference in two halves: one chooses, one judges the choice."""

    judge: FeatureExtractor
    images: ImageSet
    chosen: Tensor  # indices of the images that choose
    rest: Tensor  # and of those that judge, as many at most
    choosing: Tensor  # reference features [M,D]
    judging: Tensor

    @classmethod
    def open(cls, config: RefineConfig, images: ImageSet, device: torch.device) -> "EpsSearch":
        """Opens judge and reference. UserError where they do not fit, or the judge is the classifier that refines."""
        assert config.judge is not None
        assert config.reference is not None
        judge = open_features(_feature_space(config), device=device)
        reference = open_images(config.reference)
        for part in (images, reference):
            check_images(part, judge)
        if min(len(images), len(reference)) < 4:
            raise UserError(f"eps: auto needs at least 4 images and 4 real; got {len(images)} and {len(reference)}")
        every = torch.linspace(0, len(reference) - 1, min(len(reference), MAX_REFERENCE)).round().long().unique()
        features = _features(judge, lambda i: reference.read(i, i + 1), every)
        chosen, rest = halves(len(images), config.auto_images)
        return cls(judge, images, chosen, rest[: config.auto_images], features[::2], features[1::2])

    def choose(self, refinery: Refinery, attack_at: Callable[[float], PGD], targets: Tensor | None) -> Curve:
        """The curve over eps on the choosing images; progress on stderr."""

        def refine_at(eps: float) -> Tensor:
            print(f"eps auto: {len(self.chosen)} images at eps {eps:g}", file=sys.stderr)
            return _refined(replace(refinery, attack=attack_at(eps)), self.images, self.chosen, targets)

        def judged(x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
            parts = [self.judge(batch) for batch in x_u8.split(JUDGE_BATCH)]
            features = torch.cat(parts)
            return features, self.judge.logits(features)

        return search(refine_at, judged, self.choosing, norm=refinery.attack.norm)

    def verdict(self, refined: Pixels) -> dict[str, Any]:
        """Frechet distances of images that did not choose to the reference's other half, before and after."""
        before = _features(self.judge, lambda i: self.images.read(i, i + 1), self.rest)
        after = _features(self.judge, refined, self.rest)
        reference = _statistics(self.judging)
        return {
            "frechet_before": round(frechet_distance(_statistics(before), reference), 4),
            "frechet_after": round(frechet_distance(_statistics(after), reference), 4),
            "n_held_apart": len(self.rest),
            "n_reference": len(self.judging),
            "judge": self.judge.name,
        }


def as_plain(curve: Curve) -> dict[str, Any]:
    """The curve, ready for JSON."""
    return {
        "eps": curve.best.eps,
        "plausible": list(curve.plausible),
        "curve": [asdict(point) for point in curve.points],
        "table": tell(curve),
    }


def _feature_space(config: RefineConfig) -> str:
    """The judge's name in features/: Inception's by its own, else a classifier, which may not be one that refines."""
    judge = str(config.judge)
    if judge.startswith("inception"):
        return judge
    name = judge.removeprefix("classifier:")
    same = sha256_of(find(name))
    if any(sha256_of(find(checkpoint)) == same for checkpoint in config.ckpts):
        raise UserError(f"judge: {name} is the classifier that refines, which would flatter its own work; take another")
    return f"classifier:{name}"


def _refined(refinery: Refinery, images: ImageSet, index: Tensor, targets: Tensor | None) -> Tensor:
    """The images at `index` refined, uint8 [n,3,H,W]."""
    parts: list[Tensor] = []
    for rows in index.split(refinery.block):
        pixels = torch.cat([images.read(i, i + 1) for i in rows.tolist()])
        stored, _ = refinery.refine(pixels, None if targets is None else targets[rows])
        parts.append(to_u8(to_float(stored)))
    return torch.cat(parts)


def _features(judge: FeatureExtractor, pixels: Pixels, index: Tensor) -> Tensor:
    """[n,D] on the CPU of the images at `index`."""
    batches = (torch.cat([pixels(i) for i in rows.tolist()]) for rows in index.split(JUDGE_BATCH))
    return torch.cat([judge(to_u8(to_float(batch))).cpu() for batch in batches])


def _statistics(features: Tensor) -> FrechetStatistics:
    statistics = FrechetStatistics(features.shape[1])
    statistics.update(features)
    return statistics
