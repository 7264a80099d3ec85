"""Which class each image is refined towards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from refine.balance import balanced
from refine.label_files import check_is_file, labels_from_file
from refine.network import consensus, images_first
from refine.work_folder import Shards, WorkFolder
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.labels import class_index, fit_labels, prompts_of


class Labelled(Protocol):
    """What an image set, or several of them, say about their images."""

    @property
    def path(self) -> Path: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    def __len__(self) -> int: ...


ONE_CLASS = "class:"
LABEL_SUFFIXES = (".csv", ".json")
DEBIASING_IMAGES = 1000  # as the paper's notebooks have it
WHOLE_SET = ("debiased", "balanced")  # the classifier's guesses about all images decide the target of each
TARGETS = "targets.npy"


def check_targets(targets: str | None, guesses: Sequence[str]) -> None:
    """UserError unless targets is None, "given", one of the classifier's `guesses`, class:NAME, or a file of labels."""
    if targets is None or targets in ("given", *guesses) or targets.startswith(ONE_CLASS):
        return
    if is_label_file(targets):
        check_is_file(Path(targets), field="targets")
        return
    raise UserError(
        f"targets: {targets!r} is none of given, {', '.join(guesses)}, {ONE_CLASS}NAME, or a .csv or .json file of "
        "labels"
    )


def mode_of(targets: str | None, prompt: str | None, labels: np.ndarray | None) -> str:
    """What --targets stands for: where it is not given, the one --prompt, else the set's labels, else guesses."""
    if targets is None and len(prompts_of(prompt)) == 1:
        return f"{ONE_CLASS}0"
    return targets or ("pseudo" if labels is None else "given")


def is_label_file(targets: str) -> bool:
    """Whether --targets names a file of labels."""
    return Path(targets).suffix in LABEL_SUFFIXES


def label_source(targets: str) -> str:
    """How the manifest calls where these --targets come from."""
    if targets.startswith(ONE_CLASS):
        return "one"
    return "file" if is_label_file(targets) else targets


def known_targets(
    targets: str, images: Labelled, classifier: RobustClassifier, *, total: int | None = None
) -> Tensor | None:
    """Classes [N] int64 that do not depend on the images; None where the classifier is to guess.

    total: how many images there are, where these are the first of them.
    """
    if targets == "given":
        return given_targets(images, classifier)
    if targets.startswith(ONE_CLASS):
        return one_class(targets.removeprefix(ONE_CLASS), len(images), classifier.class_names)
    if is_label_file(targets):
        return labels_from_file(Path(targets), images.names, classifier.class_names, total=total)
    return None


def assign(targets: str, prior: Tensor | None, work: WorkFolder, shards: Shards, order: Tensor) -> None:
    """Writes the targets [N] that all logits together decide. Holds these in memory: N x classes float32.

    order [N]: where each row of the shards stands among all images, whose order the targets have.
    """
    seen = (torch.from_numpy(work.read_array(logits_name(k))) for k in range(len(shards)))
    by_row = torch.cat([consensus(images_first(logits)) for logits in seen])
    logits = torch.empty_like(by_row)
    logits[order] = by_row
    if targets == "debiased":
        index = debiased(logits)
    else:
        index = balanced(logits.log_softmax(1), prior)
    work.write_array(TARGETS, index.numpy())


def logits_name(k: int) -> str:
    """The file in the work folder with the logits of shard k."""
    return f"logits-{k:05d}.npy"


def given_targets(images: Labelled, model: RobustClassifier) -> Tensor:
    """The set's own labels as indices into the model's classes, int64 [N]."""
    if images.labels is None:
        raise UserError(
            f"targets: given, but {images.path} has no labels (an .npz carries them in arr_1, a folder as class "
            f"subfolders); choose other --targets"
        )
    index = fit_labels(images.labels, images.class_names, model.class_names, source=f"{images.path} (--targets given)")
    return torch.from_numpy(index)


def one_class(name: str | int, n: int, class_names: Sequence[str]) -> Tensor:
    """One class for all n images, by its name (case ignored) or its index, int64 [n]."""
    return torch.full((n,), class_index(name, class_names, source="targets"))


def pseudo(logits: Tensor) -> Tensor:
    """The class that the classifier sees in each image: logits [N,C] -> int64 [N]."""
    return logits.argmax(dim=1)


def debiased(logits: Tensor) -> Tensor:
    """Pseudo-labels after the mean logits of the first 1,000 images are taken off, int64 [N].

    It shifts means only, and does not make the classes balanced. From the paper's notebooks.
    """
    return (logits - logits[:DEBIASING_IMAGES].mean(dim=0)).argmax(dim=1)


def uncertain(logits: Tensor, below: float) -> Tensor:
    """True for the images whose most probable class has a probability less than `below`: [N,C] -> bool [N]."""
    return logits.softmax(dim=1).amax(dim=1) < below
