"""What each metric rewards, what fools it, and from which N it means something: for --explain and the page."""

from collections.abc import Mapping, Sequence

from eval.quality.metrics import METRICS
from robust_models.features.efficientnet import limits_of


def explained() -> list[dict[str, str]]:
    """A row for each metric: what it is, what it rewards, what fools it, and from which N it means something."""
    rows = []
    for metric in METRICS.values():
        least = f"{metric.least_per_feature} for each feature" if metric.least_per_feature else f"{metric.least:,}"
        about = (metric.__doc__ or "").split("\n")[0].rstrip(".")
        rows.append(
            {
                "metric": metric.name,
                "what it is": about,
                "rewards": metric.rewards,
                "fooled by": metric.fooled_by,
                "from N": least,
            }
        )
    return rows


def explained_lines(rows: Sequence[Mapping[str, str]], spaces: Sequence[str]) -> list[str]:
    """The rows of explained() for a terminal, and what the feature spaces are blind to."""
    lines = [limits for name in spaces if (limits := limits_of(name))]
    for row in rows:
        lines += [
            f"{row['metric']}: {row['what it is']}",
            f"  rewards {row['rewards']}",
            f"  fooled by {row['fooled by']}",
        ]
        lines += [f"  means something from N = {row['from N']} on"] if row["from N"] != "0" else []
    return lines
