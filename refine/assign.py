"""Targets for a whole set, before any image of it is refined."""

from pathlib import Path

import torch
from torch import Tensor

from refine.balance import balanced
from refine.config import ONE_CLASS
from refine.ensemble import consensus
from refine.outcome import images_first
from refine.targets import debiased, given_targets, labels_from_file, one_class
from refine.work_folder import Shards, WorkFolder
from robust_models.classifier import RobustClassifier
from robust_models.images import ImageSet

WHOLE_SET = ("debiased", "balanced")  # the classifier's guesses about all images decide the target of each
TARGETS = "targets.npy"


def label_source(targets: str) -> str:
    """How the manifest calls where these --targets come from."""
    if targets.startswith(ONE_CLASS):
        return "one"
    return "file" if Path(targets).suffix else targets


def known_targets(targets: str, images: ImageSet, classifier: RobustClassifier) -> Tensor | None:
    """Classes [N] int64 that do not depend on the images; None where the classifier is to guess."""
    if targets == "given":
        return given_targets(images, classifier)
    if targets.startswith(ONE_CLASS):
        return one_class(targets.removeprefix(ONE_CLASS), len(images), classifier.class_names)
    if Path(targets).suffix in (".csv", ".json"):
        return labels_from_file(Path(targets), images.names, classifier.class_names)
    return None


def assign(targets: str, prior: Tensor | None, work: WorkFolder, shards: Shards) -> None:
    """Writes the targets [N] that all logits together decide. Holds these in memory: N x classes float32."""
    seen = (torch.from_numpy(work.read_array(logits_name(k))) for k in range(len(shards)))
    logits = torch.cat([consensus(images_first(logits)) for logits in seen])
    if targets == "debiased":
        index = debiased(logits)
    else:
        index = balanced(logits.log_softmax(1), prior)
    work.write_array(TARGETS, index.numpy())


def logits_name(k: int) -> str:
    return f"logits-{k:05d}.npy"
