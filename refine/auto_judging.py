"""What `auto` compares with: judges that take no part in refining, and images and a reference in two halves.

The images and the half of the reference that choose are not those that judge the choice. Distances are in the judges'
features: Frechet distances, or KIDs where a set has fewer images than features.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from refine.config import RefineConfig
from refine.refine_batch import BatchRefiner
from refine.selection import halves, spread
from robust_models.checkpoints.flags import file_of
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.efficientnet import limits_of
from robust_models.features.extractor import check_features, check_images, is_feature_space, split_spaces
from robust_models.features.involved import NO_JUDGE, check_uninvolved, judges_at_hand
from robust_models.images import ImageSet, open_images, to_float, to_u8
from robust_models.images.open import fingerprint
from robust_models.metrics import bootstrap_counts
from robust_models.metrics.kernel_resampled import measure_of, reference_for, resampler_for
from robust_models.runtime.files import sha256_of

MAX_REFERENCE = 10_000  # images of the reference, spread evenly
JUDGE_BATCH = 100
VERDICT_RESAMPLES = 400
LEAST = 4  # images, two of which choose and two of which judge
LEAST_FOR_VERDICT = 100  # images: with fewer the command says so

MEASURES = {"frechet": "Frechet distance", "kid": "KID"}


@dataclass(frozen=True)
class Verdict:
    """Whether a choice also helps images that had no part in it, in one judge's features."""

    measure: str  # "frechet" or "kid"
    distance_before: float
    distance_after: float
    difference_interval: tuple[float, float]  # of after less before, 95 %
    n_held_apart: int
    n_reference: int
    num_features: int  # of the judge
    judge: str

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.difference_interval[1] < 0

    @property
    def is_loss(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.difference_interval[0] > 0


@dataclass(frozen=True)
class Judging:
    """Judges, the first of which chooses, and images and a reference in two halves: one chooses, one judges."""

    judges: tuple[FeatureExtractor, ...]
    images: ImageSet
    chosen: Tensor  # indices of the images that choose
    rest: Tensor  # and of those that judge, as many at most
    choosing: Tensor  # reference features [M,D] of the first judge
    judging: tuple[Tensor, ...]  # of each

    @classmethod
    def open(
        cls,
        config: RefineConfig,
        images: ImageSet,
        classifiers: Sequence[RobustClassifier],
        device: torch.device,
        judges: Sequence[FeatureExtractor] | None = None,
    ) -> "Judging":
        """Opens judges and reference. UserError where they do not fit, or a judge is of the classifiers' kind."""
        assert config.reference is not None
        judges = judges or _open_judges(config, classifiers, device)
        reference = open_images(config.reference)
        for note in notes(judges, dict(zip(config.ckpts, classifiers, strict=True))):
            print(f"note: {note}", file=sys.stderr)
        for judge in judges:
            for name, classifier in zip(config.ckpts, classifiers, strict=True):
                check_uninvolved(judge, name, sha256_of(file_of(name)), classifier.description)
            for part in (images, reference):
                check_images(part, judge)
        if min(len(images), len(reference)) < LEAST:
            raise UserError(
                f"{config.auto_fields[0]}: auto needs at least {LEAST} images and {LEAST} real; got {len(images)} and "
                f"{len(reference)}"
            )
        features = [_reference_features(judge, reference) for judge in judges]
        chosen, rest = halves(len(images), config.auto_images)
        judging = tuple(rows[1::2] for rows in features)
        return cls(tuple(judges), images, chosen, rest[: config.auto_images], features[0][::2], judging)

    def choosing_images(self, refiner: BatchRefiner | None, targets: Tensor | None) -> Tensor:
        """The images that choose, refined (None: as they came), uint8 [n,3,H,W]."""
        return _refined(refiner, self.images, self.chosen, targets)

    def see(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [n,D] of the first judge and, where it has some, its logits [n,C]."""
        features = _seen(self.judges[0], x_u8)
        return features, self.judges[0].logits(features)

    def held_out(self, refiner: BatchRefiner | None, targets: Tensor | None) -> list[Tensor]:
        """Each judge's features of the images that did not choose, refined (None: as they came)."""
        x_u8 = _refined(refiner, self.images, self.rest, targets)
        return [_seen(judge, x_u8).cpu() for judge in self.judges]

    def verdicts(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Verdict]:
        """What lies between two results of held_out, by each judge, against the reference's other half."""
        parts = zip(self.judges, before, after, self.judging, strict=True)
        return [compared(first, second, reference, judge=judge.name) for judge, first, second, reference in parts]


def compared(before: Tensor, after: Tensor, reference: Tensor, *, judge: str = "", seed: int = 0) -> Verdict:
    """Distances to reference features [M,D] of features [N,D] of the same images before and after.

    The interval of their difference is a bootstrap over pairs of images (Efron 1979), about the difference found.
    """
    against = reference_for(reference, len(before))
    first, second = resampler_for(before, against), resampler_for(after, against)
    draws = bootstrap_counts(np.random.default_rng(seed), len(before), VERDICT_RESAMPLES)
    found = np.array([second.distance(counts) - first.distance(counts) for counts in draws])
    whole = np.ones(len(before), dtype=np.int64)
    distances = first.distance(whole), second.distance(whole)
    low, high = np.quantile(found - found.mean(), (0.025, 0.975)) + distances[1] - distances[0]
    return Verdict(
        measure=measure_of(against),
        distance_before=_short(distances[0]),
        distance_after=_short(distances[1]),
        difference_interval=(_short(low), _short(high)),
        n_held_apart=len(before),
        n_reference=len(reference),
        num_features=before.shape[1],
        judge=judge,
    )


def _short(number: float) -> float:
    return float(f"{number:.5g}")


def notes(judges: Sequence[FeatureExtractor], classifiers: Mapping[str, RobustClassifier]) -> list[str]:
    """What to know before believing the judges: that one is of the classifiers' kind, or a classifier not robust."""
    found = []
    for judge in judges:
        names = [n for n, one in classifiers.items() if getattr(judge, "class_names", None) == one.class_names]
        if names:
            found.append(
                f"{judge.name} is a classifier of the same classes as {', '.join(names)}: what such a one adds, it may "
                "see as an improvement where people see none"
            )
    found += [limits for judge in judges if (limits := limits_of(judge.name))]
    weak = [name for name, one in classifiers.items() if one.description.threat_model is None]
    if weak and classifiers:
        found.append(
            f"nothing says that {', '.join(weak)} was trained to withstand attacks; if not, its changes look like noise"
        )
    return found


def check_judges(text: str) -> None:
    """UserError where a judge of --judge can only be a name, and there is no such feature space or classifier."""
    for name in split_spaces(text):
        try:
            check_features(_feature_space(name))
        except UserError as error:
            raise UserError(f"judge: {str(error).removeprefix('features: ')}") from error


def _feature_space(judge: str) -> str:
    """The judge's name in features/: a name that is none there is a classifier's."""
    return judge if is_feature_space(judge) else f"classifier:{judge}"


def _open_judges(
    config: RefineConfig, classifiers: Sequence[RobustClassifier], device: torch.device
) -> list[FeatureExtractor]:
    given = config.judge and [_feature_space(name) for name in split_spaces(config.judge)]
    names = given or judges_at_hand([classifier.description for classifier in classifiers])
    if not names:
        raise UserError(f"judge: none is at hand ({NO_JUDGE}); or give --judge CLASSIFIER, one that does not refine")
    return [open_features(name, device=device) for name in names]


def _refined(refiner: BatchRefiner | None, images: ImageSet, index: Tensor, targets: Tensor | None) -> Tensor:
    """The images at `index`, refined (None: as they came), uint8 [n,3,H,W]."""
    parts: list[Tensor] = []
    for rows in index.split(JUDGE_BATCH if refiner is None else refiner.block):
        pixels = torch.cat([images.read(i, i + 1) for i in rows.tolist()])
        if refiner is not None:
            pixels, _ = refiner.refine(pixels, None if targets is None else targets[rows])
        parts.append(to_u8(to_float(pixels)))
    return torch.cat(parts)


def _seen(judge: FeatureExtractor, x_u8: Tensor) -> Tensor:
    return torch.cat([judge(batch) for batch in x_u8.split(JUDGE_BATCH)])


_known: WeakKeyDictionary[FeatureExtractor, tuple[str, Tensor]] = WeakKeyDictionary()


def _reference_features(judge: FeatureExtractor, reference: ImageSet) -> Tensor:
    """[M,D] of the real images, spread evenly; kept as long as the judge is, which in a study sees them many times."""
    files = f"{reference.path.resolve()} {fingerprint(reference.path)}"
    if (known := _known.get(judge)) is None or known[0] != files:
        known = _known[judge] = files, _features(judge, reference, spread(len(reference), MAX_REFERENCE))
    return known[1]


def _features(judge: FeatureExtractor, images: ImageSet, index: Tensor) -> Tensor:
    """[n,D] on the CPU of the images at `index`."""
    batches = (torch.cat([images.read(i, i + 1) for i in rows.tolist()]) for rows in index.split(JUDGE_BATCH))
    return torch.cat([judge(to_u8(to_float(batch))).cpu() for batch in batches])
