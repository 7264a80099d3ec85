"""The summaries of `quality` and `statistics` in words: each number with what it depends on."""

from eval.quality.metrics import METRICS
from robust_models.runtime.command import Summary


def format_quality(summary: Summary) -> str:
    """A line or more for each metric, then the sets and the network."""
    lines = [line for metric in summary["metrics"] for line in METRICS[metric].lines(summary)]
    lines.append(f"N = {summary['n_images'] or 'unknown'} ({summary['images']})")
    if summary["reference"] is not None:
        lines[-1] += f" against N = {summary['n_reference'] or 'unknown'} ({summary['reference']})"
    source = summary.get("weights") or summary.get("checkpoint")
    return "\n".join([*lines, *([f"network {source['name']}, sha256 {source['sha256'][:12]}"] if source else [])])


def format_statistics(summary: Summary) -> str:
    """What was written, and of what."""
    return (
        f"{summary['out']}: mean and covariance of {summary['dim']} features in {summary['features']} "
        f"(protocol {summary['protocol']}), N = {summary['n_images']}"
    )
