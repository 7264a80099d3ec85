"""What a study reads: opened, hashed and checked once, before any work."""

import hashlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from eval.study.config import AUTO, ClassifierSpec, StudyConfig
from refine.auto_judging import LEAST
from refine.targets import known_targets
from robust_models.checkpoints.flags import load_classifier
from robust_models.classifier import Description, RobustClassifier
from robust_models.datasets import Dataset, open_dataset
from robust_models.errors import UserError, about_field
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.extractor import check_images, check_stored, split_spaces
from robust_models.features.involved import check_uninvolved, judges_at_hand
from robust_models.images import ImageSet, open_images
from robust_models.images.open import expand
from robust_models.labels import fit_labels
from robust_models.metrics import StoredStatistics, read_statistics
from robust_models.runtime.files import located, sha256_of

FALLBACK = "classifier:cifar10-standard-small"  # comes with the package; what a standard classifier does may fool it
MOST_REAL = 10_000  # reference images whose features are kept, one by one


@dataclass(frozen=True)
class Checkpoint:
    """A classifier of the study that is there, and what its file says."""

    spec: ClassifierSpec
    ckpt: str
    sha256: str
    description: Description
    num_parameters: int

    @classmethod
    def open(cls, spec: ClassifierSpec, ckpt: str) -> "Checkpoint":
        """Reads the classifier that `spec` describes from the name or file `ckpt`. UserError where it is none."""
        model, source = load_classifier(ckpt, spec)
        return cls(spec, ckpt, source.sha256, model.description, sum(p.numel() for p in model.network.parameters()))


@dataclass(frozen=True)
class Images:
    """An image set of the study; a limit of all its images or more is none."""

    set: ImageSet
    sha256: str  # of its files
    limit: int | None = None


@dataclass(frozen=True)
class Reference:
    """Stored statistics in the judge's features, or the images of which they are to be taken."""

    path: Path
    sha256: str
    stored: StoredStatistics | None
    images: ImageSet | None


@dataclass(frozen=True)
class Judge:
    """The features that score, what they compare with, and (of a classifier) its classes."""

    features: FeatureExtractor
    class_names: tuple[str, ...] | None  # by which it recognises what an image shows
    reference: Reference
    real: Images | None  # whose features KID, precision and recall compare with


@dataclass(frozen=True)
class Inputs:
    """All that a study reads, opened once."""

    judges: tuple[Judge, ...]  # the first leads
    images: dict[str, Images]
    checkpoints: dict[str, Checkpoint]  # of the classifiers that need no training
    data: Dataset | None
    data_sha256: str | None  # of the pixels and labels that are taken of it


def open_inputs(config: StudyConfig, device: torch.device) -> Inputs:
    """UserError for whatever does not fit: it names the field and the one of its members."""
    checkpoints = {spec.name: _open_checkpoint(spec) for spec in config.classifiers if spec.ckpt is not None}
    judges = tuple(_open_judge(name, config, device) for name in _judges(config, checkpoints))
    if (stop := next((name for name in config.stop if name != "never"), None)) and judges[0].real is None:
        raise UserError(f"stop: {stop} is of real images, and reference holds statistics; give reference_images")
    if config.has_auto and judges[0].real is None:
        raise UserError("eps: auto compares with real images, and reference holds statistics; give reference_images")
    for judge in judges:
        for checkpoint in checkpoints.values():
            check_uninvolved(judge.features, checkpoint.spec.name, checkpoint.sha256, checkpoint.description)
    images = {}
    for spec, judge in itertools.product(config.images, judges):
        images[spec.name] = _open_images(spec.path, spec.limit, judge.features, f"images.{spec.name}")
        _check_sizes(images[spec.name], judge.real, f"images.{spec.name}")
    if config.has_auto and judges[0].real is not None:
        _check_auto(config, images, judges[0].real)
    data = _open_data(config)
    inputs = Inputs(
        judges,
        images,
        checkpoints,
        data,
        None if data is None else sha256_of_data(data),
    )
    for checkpoint in checkpoints.values():
        check_classes(config, inputs, checkpoint)
    return inputs


def _check_auto(config: StudyConfig, images: Mapping[str, Images], real: Images) -> None:
    """UserError where a set has too few images for eps auto, half of which choose and half of which judge."""
    for spec in config.images:
        given = images[spec.name]
        n, n_real = given.limit or len(given.set), len(real.set)
        if any(AUTO in config.radii(norm, spec) for norm in config.norm) and min(n, n_real) < LEAST:
            raise UserError(
                f"images.{spec.name}: eps: auto needs {LEAST} images and {LEAST} real ones; got {n} and {n_real}"
            )


def check_classes(config: StudyConfig, inputs: Inputs, checkpoint: Checkpoint) -> None:
    """UserError where a classifier's classes do not fit what it is to refine or to be tested on; any size does."""
    without_network = RobustClassifier(nn.Identity(), checkpoint.description)
    try:
        for spec in config.images:
            images = inputs.images[spec.name].set
            modes = spec.targets or config.targets or (("given",) if images.labels is not None else ())
            for mode in modes:
                if mode == "given" and images.labels is None:
                    raise UserError(
                        f"images.{spec.name}: targets: given, but {spec.path} has no labels; give that set others: "
                        "{name: ..., targets: pseudo}"
                    )
                known_targets(mode, images, without_network)
        if inputs.data is not None:
            data = inputs.data
            fit_labels(data.y.numpy(), data.class_names, checkpoint.description.class_names, source=data.source)
    except UserError as error:
        if str(error).startswith("images."):
            raise
        raise UserError(f"classifiers.{checkpoint.spec.name}: {error}") from error


def _judges(config: StudyConfig, checkpoints: Mapping[str, Checkpoint]) -> Sequence[str]:
    """The feature spaces that judge, the first of which leads."""
    if config.judge != AUTO:
        return split_spaces(config.judge)
    described = [checkpoint.description for checkpoint in checkpoints.values()]
    found = _judge_of_statistics(config) or judges_at_hand(described, weights=config.weights) or (FALLBACK,)
    print(f"judge: {', '.join(found)}", file=sys.stderr)
    return found


def _judge_of_statistics(config: StudyConfig) -> tuple[str, ...]:
    """The one feature space that a reference of statistics alone can be compared in; () for images."""
    with about_field("reference"):
        path = located(config.reference)
    stored = read_statistics(path) if config.reference_images is None and path.is_file() else None
    return (stored.features,) if stored is not None and stored.features is not None else ()


def _open_judge(name: str, config: StudyConfig, device: torch.device) -> Judge:
    inception = {"weights": config.weights, "protocol": config.protocol} if name.startswith("inception") else {}
    try:
        features = open_features(name, **inception, device=device)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"judge: {error}") from error
    kind, _, checkpoint = name.partition(":")
    classes = load_classifier(checkpoint)[0].class_names if kind == "classifier" else None
    given = _open_reference_images(config, features)
    reference = _open_reference(config, features, given)
    real = given
    if real is None and reference.images is not None and len(reference.images) <= MOST_REAL:
        real = Images(reference.images, reference.sha256)
    return Judge(features, classes, reference, real)


def _open_images(path: Path, limit: int | None, judge: FeatureExtractor, field: str) -> Images:
    try:
        path = located(path)
        images = open_images(path)
        if images.depth != "uint8":
            raise UserError(f"{path}: images are {images.depth}; scores are of 8-bit images: save them as uint8 first")
        check_images(images, judge)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    return Images(images, sha256_of_files(path), None if limit is None or limit >= len(images) else limit)


def _check_sizes(images: Images, real: Images | None, field: str) -> None:
    """UserError where the real images have another size: a judge that resizes would compare them all the same."""
    if real is not None and images.set.size != real.set.size:
        (height, width), (real_height, real_width) = images.set.size, real.set.size
        raise UserError(
            f"{field}: images are {width}x{height}, but the real ones, {real.set.path}, {real_width}x{real_height}; "
            "give --reference real images of that size"
        )


def _open_checkpoint(spec: ClassifierSpec) -> Checkpoint:
    assert spec.ckpt is not None
    try:
        return Checkpoint.open(spec, spec.ckpt)
    except UserError as error:
        raise UserError(f"classifiers.{spec.name}: {error}") from error


def _open_reference(config: StudyConfig, judge: FeatureExtractor, given: Images | None) -> Reference:
    """Statistics of another judge's features give way to the reference images."""
    with about_field("reference"):
        path = located(config.reference)
    if path.is_file() and (stored := read_statistics(path)) is not None:
        try:
            check_stored(stored, judge)
        except UserError as error:
            if given is not None:
                return Reference(given.set.path, given.sha256, None, given.set)
            raise UserError(f"reference: {str(error).replace('--features', 'judge')}") from error
        return Reference(path, sha256_of(path), stored, None)
    images = _open_images(path, None, judge, "reference")
    return Reference(path, images.sha256, None, images.set)


def _open_reference_images(config: StudyConfig, judge: FeatureExtractor) -> Images | None:
    if config.reference_images is None:
        return None
    return _open_images(config.reference_images, None, judge, "reference_images")


def _open_data(config: StudyConfig) -> Dataset | None:
    if config.data is None:
        return None
    try:
        return open_dataset(config.data, "test", limit=config.robust.limit).in_memory()
    except UserError as error:
        raise UserError(f"data: {error}") from error


def sha256_of_data(data: Dataset) -> str:
    """Of the pixels, the labels and the class names."""
    digest = hashlib.sha256(repr((tuple(data.x_u8.shape), data.class_names)).encode())
    digest.update(data.x_u8.numpy().tobytes())
    digest.update(data.y.numpy().tobytes())
    return digest.hexdigest()


def sha256_of_files(path: Path) -> str:
    """Of a file, a folder, or all files that a pattern names."""
    if path.exists():
        return sha256_of(path)
    return hashlib.sha256("\n".join(map(sha256_of, expand(path))).encode()).hexdigest()
