"""What a task did to each image, measured on the images that are stored."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refine.manifest import DIGITS
from refine.network import Network, confidence
from refine.synthesis.task import Work
from refine.work_folder import Row
from robust_models.classifier import Precision
from robust_models.images import to_float
from robust_models.threat import NORMS

Columns = dict[str, Tensor]  # [n] on the CPU
MEANS = ("confidence_before", "confidence_after", "on_target", "objective_before", "objective_after", "distance")


@torch.no_grad()
def measure(network: Network, work: Work, x_u8: Tensor, norm: str) -> Columns:
    """target, and MEANS, of the results x_u8 [n,3,H,W] on the network's device.

    Confidence is the probability of the target, "before" is the start, distance is that from the ball's centre.
    """
    x = to_float(x_u8)
    before, after = network(work.start), network(x)
    center = work.start if work.center is None else work.center
    columns = {
        "target": work.y,
        "confidence_before": confidence(before, work.y),
        "confidence_after": confidence(after, work.y),
        "on_target": after.argmax(1) == work.y,
        "objective_before": work.objective(network, work.start, work.y),
        "objective_after": work.objective(network, x, work.y),
        "distance": NORMS[norm].length(x - center),
    }
    return {name: column.cpu() for name, column in columns.items()}


def manifest_rows(
    columns: Columns, names: Sequence[str], class_names: Sequence[str], precision: Precision
) -> list[Row]:
    """One JSON-ready row for each of `names`: source, class (name), the columns, and the precision."""
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows: list[Row] = []
    for name, numbers in zip(names, values, strict=False):  # columns fill a block, names do not
        row = dict(zip(columns, numbers, strict=True))
        plain = {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in row.items()}
        rows.append({"source": name, "class": class_names[row["target"]], **plain, "precision": precision})
    return rows
