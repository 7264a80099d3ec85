"""The features of a classifier listed: the images that excite them most, and the classes they go with.

What `--task paint` raises is one of these features.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from refine.flags import ClassifierFlags, InputFlags, MachineFlags
from refine.network import Network
from refine.refine_batch import block_size, filled
from refine.synthesis.feature_statistics import FeatureStatistics
from refine.synthesis.inputs import open_set
from robust_models.checkpoints.checks import check_names
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.folding import folded
from robust_models.grids import check_picture_out, save_rows
from robust_models.images import ImageSet, to_float, to_u8
from robust_models.labels import fit_labels
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.config import STRICT, AtLeastOne
from robust_models.runtime.device import MEASURED_PRECISION, PrecisionChoice, decide_precision, pick_device, place
from robust_models.runtime.distributed import check_alone
from robust_models.runtime.files import write_json

SHOWN_CLASSES = 3  # for each feature on the terminal; the JSON has all
EXAMPLES = """\
  bigroc refine --task features --ckpt cifar10-l2-small --input real.npz --out features.png --top 8
  bigroc refine --task features --ckpt cifar10-l2-small --input real.npz --out features.png --feature 3,17
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FeaturesConfig(MachineFlags, InputFlags, ClassifierFlags):
    """Which features to list, over which images."""

    out: Path = Field(description="the picture, .png; the numbers go beside it, .json")
    feature: str | None = Field(default=None, description="indices of the features to list, with commas: 3,17")
    top: AtLeastOne = Field(
        default=8,
        description="how many features to list where --feature names none: for each class the one most tied to it, ...",
    )
    images: AtLeastOne = Field(default=8, description="how many images to show for each feature")
    targets: Literal["given", "pseudo"] | None = Field(
        default=None,
        description="the classes that features are compared with: the set's labels, or what the classifier sees "
        "(null: labels where there are some)",
    )
    precision: PrecisionChoice = Field(default="fp32", description=MEASURED_PRECISION)


def check_feature(classifier: RobustClassifier, k: int) -> int:
    """k, if the classifier has a feature of that index; else UserError with the range, or as there are no features."""
    count = classifier.head.in_features
    if not 0 <= k < count:
        raise UserError(f"feature: {k} is out of range; this classifier has {count} features (0 to {count - 1})")
    return k


def list_features(config: FeaturesConfig) -> Summary:
    """Writes the picture and the JSON; gives what the JSON holds."""
    check_alone("task: features")
    if config.out.suffix.lower() != ".png":
        raise UserError(f"out: {config.out} is a picture; let its name end in .png")
    check_picture_out(config.out, "out")
    if (numbers := config.out.with_suffix(".json")).exists() and not config.out.exists():
        raise UserError(f"out: {numbers} exists and is of something else; name another file")
    device = pick_device(config.device)
    precision = decide_precision(config.precision, device, "measurement")
    classifier = place(folded(config.load(config.ckpt)), device, precision.precision)
    asked = None if config.feature is None else [check_feature(classifier, k) for k in _indices(config.feature)]
    images = open_set(config, config.out)
    statistics = count_features(config, images, Network(classifier))
    listed = _most_tied(statistics, config.top) if asked is None else asked
    summary: Summary = {
        "out": str(config.out),
        "json": str(config.out.with_suffix(".json")),
        "checkpoint": config.ckpt,
        **precision.summary(),
        "n": len(images),
        "classes": config.targets or ("pseudo" if images.labels is None else "given"),
        "features_in_all": classifier.head.in_features,
        "features": [_row(statistics, k, images, classifier.class_names) for k in listed],
    }
    _save_picture(config.out, images, summary["features"])
    write_json(config.out.with_suffix(".json"), summary)
    return summary


def _indices(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.removeprefix("-").isdecimal() for word in words):
        raise UserError(f"feature: {text!r} is no list of indices; expected, for instance, 3,17")
    return list(map(int, words))


@torch.no_grad()
def count_features(config: FeaturesConfig, images: ImageSet, network: Network) -> FeatureStatistics:
    """Counts the features of every image, together with its label or, where there is none to take, predicted class."""
    labels = _labels(config, images, network.class_names)
    head = network.model.head
    statistics = FeatureStatistics(head.in_features, len(network.class_names), config.images)
    block = block_size(network.device, max(network.image_size, *images.size), config.batch_size)
    with tqdm(total=len(images), unit="img", desc="features") as bar:
        for part, pixels in images.batches(block):
            features = network.features(network.here(filled(to_float(pixels), block)))[: len(pixels)]
            y = head(features.to(head.weight.dtype)).argmax(dim=1) if labels is None else labels[part]
            statistics.update(features, y)
            bar.update(len(pixels))
    return statistics


def _labels(config: FeaturesConfig, images: ImageSet, class_names: tuple[str, ...]) -> Tensor | None:
    if config.targets == "given" and images.labels is None:
        raise UserError(f"targets: given, but {images.path} has no labels; pass --targets pseudo")
    if config.targets == "pseudo" or images.labels is None:
        return None
    source = f"{images.path} (or pass --targets pseudo)"
    return torch.from_numpy(fit_labels(images.labels, images.class_names, class_names, source=source))


def _most_tied(statistics: FeatureStatistics, count: int) -> list[int]:
    """The feature that goes best with each class, then the second best of each, ...; the highest correlations first."""
    values, features = statistics.correlation().sort(dim=1, descending=True, stable=True)  # [C,D]
    by_rank = features.gather(0, values.argsort(dim=0, descending=True, stable=True))
    return list(dict.fromkeys(by_rank.T.flatten().tolist()))[:count]


def _row(statistics: FeatureStatistics, k: int, images: ImageSet, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What is known of feature k, ready for JSON; classes by correlation, the highest first."""
    correlation = statistics.correlation()[:, k]
    strongest = zip(statistics.images[:, k].tolist(), statistics.strongest[:, k].tolist(), strict=True)
    return {
        "feature": k,
        "mean": round(statistics.mean[k].item(), 6),
        "std": round(statistics.std[k].item(), 6),
        "images": [{"index": i, "source": images.names[i], "activation": round(value, 6)} for i, value in strongest],
        "correlation": {
            class_names[c]: round(correlation[c].item(), 4)
            for c in correlation.argsort(descending=True, stable=True).tolist()
        },
    }


def _save_picture(path: Path, images: ImageSet, rows: list[dict[str, Any]]) -> None:
    """A row for each feature, under its index and the class it goes with most: the images that excite it most."""
    pictures = []
    for row in rows:
        pixels = torch.cat([images.read(seen["index"], seen["index"] + 1) for seen in row["images"]])
        name, correlation = next(iter(row["correlation"].items()))
        pictures.append((f"feature {row['feature']} ({name} {correlation:.2f})", to_u8(to_float(pixels))))
    count = len(rows[0]["images"])
    captions = ["most", *(f"{i}" for i in range(2, count + 1))]
    save_rows(path, pictures, captions[:count], columns=count)


def _format_summary(summary: Summary) -> str:
    words = {"given": "their labels", "pseudo": "predicted classes"}[summary["classes"]]
    lines = [
        f"{summary['out']}: {len(summary['features'])} of {summary['features_in_all']} features, the images of "
        f"{summary['n']} that excite each most, and its correlation with {words}; numbers in {summary['json']}"
    ]
    for row in summary["features"]:
        classes = ", ".join(f"{name} {value:+.2f}" for name, value in list(row["correlation"].items())[:SHOWN_CLASSES])
        seen = ", ".join(image["source"] for image in row["images"][:SHOWN_CLASSES])
        lines.append(f"feature {row['feature']}: {classes}; mean {row['mean']:.3f}, std {row['std']:.3f}; {seen}, ...")
    return "\n".join(lines)


COMMAND = Command(
    name="bigroc refine --task features",
    about="List the features of a classifier: the images that excite each most, the classes it goes with.",
    schema=FeaturesConfig,
    work=list_features,
    format_summary=_format_summary,
    examples=EXAMPLES,
    check=check_names,
)
