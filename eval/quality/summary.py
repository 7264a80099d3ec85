"""The summaries of `quality` and `statistics` in words: each number with what it depends on."""

from collections.abc import Callable

from robust_models.runtime.command import Summary


def format_quality(summary: Summary) -> str:
    lines = [line for metric in summary["metrics"] for line in _WORDS[metric](summary)]
    counts = f"N = {summary['n_images'] or 'unknown'} ({summary['images']})"
    if summary["reference"] is not None:
        counts += f" against N = {summary['n_reference'] or 'unknown'} ({summary['reference']})"
    return "\n".join([*lines, counts, *_network(summary)])


def format_statistics(summary: Summary) -> str:
    return (
        f"{summary['out']}: mean and covariance of {summary['dim']} features in {summary['features']} "
        f"(protocol {summary['protocol']}), N = {summary['n_images']}"
    )


def _fid(summary: Summary) -> list[str]:
    name = "FID, the Frechet distance" if "fid" in summary else "Frechet distance"
    lines = [f"{name} in {_space(summary)}: {summary['frechet']:.6g}"]
    if "frechet_interval" in summary:
        low, high = summary["frechet_interval"]
        lines[0] += f" (95 %: {low:.6g} to {high:.6g}, {summary['bootstrap']} resamples of the images)"
    if "frechet_infinite" in summary:
        lines.append(f"  extrapolated to infinitely many images: {summary['frechet_infinite']:.6g}")
    for label, found in summary.get("per_class", {}).items():
        lines.append(f"  {label}: {found['frechet']:.6g} (N = {found['n_images']} against {found['n_reference']})")
    return lines


def _is(summary: Summary) -> list[str]:
    mean, std, splits = (summary[f"inception_score{part}"] for part in ("", "_std", "_splits"))
    return [f"Inception Score in {_space(summary)}: {mean:.6g} +- {std:.3g} over {splits} splits"]


def _kid(summary: Summary) -> list[str]:
    subsets, size = summary["kid_subsets"]
    return [f"KID in {_space(summary)}: {summary['kid']:.6g} +- {summary['kid_std']:.3g} ({subsets} subsets of {size})"]


def _prc(summary: Summary) -> list[str]:
    return [
        f"precision {summary['precision']:.4f}, recall {summary['recall']:.4f} (k = {summary['prc_neighbours']}, "
        f"{summary['prc_n_reference']} real images)"
    ]


def _sfid(summary: Summary) -> list[str]:
    return [f"sFID (first 7 channels of mixed_6, 17x17): {summary['sfid']:.6g}"]


def _fd_dinov2(summary: Summary) -> list[str]:
    return [f"FD with DINOv2 ({summary['dinov2']['weights']['name']}): {summary['fd_dinov2']:.6g}"]


def _space(summary: Summary) -> str:
    return f"{summary['features']} ({summary['dim']}-d, protocol {summary['protocol']})"


def _network(summary: Summary) -> list[str]:
    source = summary.get("weights") or summary.get("checkpoint")
    return [f"network {source['name']}, sha256 {source['sha256'][:12]}"] if source else []


_WORDS: dict[str, Callable[[Summary], list[str]]] = {
    "fid": _fid,
    "is": _is,
    "kid": _kid,
    "prc": _prc,
    "sfid": _sfid,
    "fd-dinov2": _fd_dinov2,
}
