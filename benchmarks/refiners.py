"""Do input gradients tell a good refiner before it refines? `bigroc eval gradients` against what refining gains.

    python -m benchmarks.refiners --data TEST.npz --reference TRAIN.npz [--spaces efficientnet-lite0-128 inception-768]
        [--weights INCEPTION.pth] [--figure docs/refiners.png]

Every embedded classifier refines the bundled samples at the same eps, towards the classes that they were asked for. The
gain is the fall of the kernel distance (KID's kernel, unbiased) to TEST in spaces that took no part; intervals resample
the images, raw and refined alike (paired). Rank correlations (Spearman) are over classifiers, with the interval that
resampling the classifiers gives, and the share of all orders that correlate as much. Seven points are few, and two of
them are no robust classifiers, so that the robust ones also stand alone.
"""

import argparse
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from eval import gradient_alignment
from refine import refine
from robust_models import load, load_dataset, open_images, to_float, to_u8
from robust_models.checkpoints.load import embedded_names
from robust_models.features import open_features
from robust_models.metrics import bootstrap_counts
from robust_models.metrics.kernel_resampled import KernelReference, KernelResampler
from robust_models.runtime.version import environment

PRETRAINED = Path(__file__).parent.parent / "robust_models" / "pretrained"
SETS = {"vae": PRETRAINED / "vae-cifar10.npz", "dcgan": PRETRAINED / "dcgan-cifar10.npz"}
RESAMPLES = 1000
BATCH = 64


@dataclass(frozen=True)
class Gain:
    """How much closer to real images a classifier brings a set, x 1000, in one feature space."""

    images: str
    eps: float
    space: str
    raw: float
    gain: float
    interval: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(PRETRAINED / "cifar10-test-500.npz"))
    parser.add_argument("--reference", default=None)
    parser.add_argument("--images", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--eps", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--spaces", nargs="+", default=["efficientnet-lite0-128"])
    parser.add_argument("--weights", type=Path, default=None, help="of the Inception network")
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    scores = {}
    for name in embedded_names():
        found = gradient_alignment(name, args.data, args.reference)
        scores[name] = {"alignment": found.alignment.value, "lift": found.lift, "interval": found.alignment.interval}
        print(
            f"{name:28} alignment {found.alignment.value:.4f}, {found.lift:5.2f} times a random direction", flush=True
        )
    gains = measure_gains(args)
    table(scores, gains)
    correlations = [correlation(scores, gains, key, score) for key in keys(gains) for score in ("alignment", "lift")]
    for found in correlations:
        print(found["words"])
    if args.figure:
        draw(scores, gains, args.figure)
    rows = {name: [asdict(gain) for gain in of_name] for name, of_name in gains.items()}
    print(json.dumps({"scores": scores, "gains": rows, "correlations": correlations, "environment": environment()}))


def measure_gains(args: argparse.Namespace) -> dict[str, list[Gain]]:
    """By classifier; sets, eps and spaces in their order."""
    real = load_dataset(args.data, "test").x_u8
    gains: dict[str, list[Gain]] = {name: [] for name in embedded_names()}
    for space in args.spaces:
        network = open_features(space, weights=args.weights if space.startswith("inception") else None)

        def features(x_u8: Tensor, network=network) -> Tensor:
            return torch.cat([network(part) for part in x_u8.split(BATCH)])

        reference = KernelReference(features(real))
        for label in args.images:
            images = open_images(SETS[label])
            x_u8, y = images.read(0, len(images)), torch.from_numpy(np.asarray(images.labels))
            before = KernelResampler(features(x_u8), reference)
            for eps, name in itertools.product(args.eps, embedded_names()):
                after = KernelResampler(features(refined(name, x_u8, y, eps)), reference)
                gain = Gain(label, eps, space, *compared(before, after))
                gains[name].append(gain)
                print(f"{space} {label} eps {eps:g} {name:28} {gain.gain:+8.2f}", flush=True)
    return gains


def refined(name: str, x_u8: Tensor, y: Tensor, eps: float) -> Tensor:
    """As a file would hold them."""
    model = load(name)
    return torch.cat([
        to_u8(refine(model, to_float(x), target, eps=eps))
        for x, target in zip(x_u8.split(BATCH), y.split(BATCH), strict=True)
    ])  # fmt: skip


def compared(before: KernelResampler, after: KernelResampler) -> tuple[float, float, tuple[float, float]]:
    """Raw distance, its fall, and the fall's 95 % interval: x 1000."""
    n = before.n
    every = np.ones(n, dtype=np.int64)
    raw = before.distance(every)
    falls = [
        before.distance(counts) - after.distance(counts)
        for counts in bootstrap_counts(np.random.default_rng(0), n, RESAMPLES)
    ]
    low, high = np.quantile(falls, [0.025, 0.975])
    return 1000 * raw, 1000 * (raw - after.distance(every)), (1000 * float(low), 1000 * float(high))


def keys(gains: dict[str, list[Gain]]) -> list[tuple[str, float, str]]:
    return [(gain.images, gain.eps, gain.space) for gain in next(iter(gains.values()))]


def table(scores: dict[str, dict], gains: dict[str, list[Gain]]) -> None:
    """In Markdown: a row for each classifier, in the order of alignment."""
    columns = keys(gains)
    raw = {key: next(g.raw for g in next(iter(gains.values())) if (g.images, g.eps, g.space) == key) for key in columns}
    print(
        "| classifier | alignment | x random |"
        + "".join(f" {i} {s}, eps {e:g} ({raw[i, e, s]:.0f}) |" for i, e, s in columns)
    )
    print("|---|---|---|" + "---|" * len(columns))
    for name in sorted(scores, key=lambda name: scores[name]["alignment"]):
        low, high = scores[name]["interval"]
        cells = [f"{g.gain:+.1f} ({g.interval[0]:+.1f} to {g.interval[1]:+.1f})" for g in gains[name]]
        own = f"{scores[name]['alignment']:.4f} ({low:.4f} to {high:.4f}) | {scores[name]['lift']:.1f}"
        print(f"| {name} | {own} | {' | '.join(cells)} |")


def correlation(scores: dict[str, dict], gains: dict[str, list[Gain]], key: tuple[str, float, str], score: str) -> dict:
    """Spearman's of a score and a gain over all classifiers, and over those that the scores call robust."""
    column = keys(gains).index(key)
    x = np.array([scores[name][score] for name in gains])
    y = np.array([of_name[column].gain for of_name in gains.values()])
    robust = np.array([scores[name]["lift"] > 3 for name in gains])
    rho, chance, (low, high) = rank_correlation(x, y)
    within, within_chance, _ = rank_correlation(x[robust], y[robust])
    words = (
        f"{key[0]} eps {key[1]:g} {key[2]} {score}: rho {rho:+.2f} (95 %: {low:+.2f} to {high:+.2f}; p {chance:.3f}), "
        f"{len(x)} classifiers; the {robust.sum()} robust ones {within:+.2f} (p {within_chance:.2f})"
    )
    return {
        "key": key,
        "score": score,
        "rho": rho,
        "interval": [low, high],
        "p": chance,
        "robust": within,
        "words": words,
    }


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """Spearman's; the share of all orders of y that correlate as much or more in size; its 95 % bootstrap interval."""
    rho = float(scaled(x) @ scaled(y))
    orders = np.array(list(itertools.permutations(scaled(y))))
    every = orders @ scaled(x)
    chance = float(np.mean(np.abs(every) >= abs(rho) - 1e-9))
    rng, draws = np.random.default_rng(0), []
    while len(draws) < RESAMPLES:
        rows = rng.integers(0, len(x), len(x))
        if len(set(rows)) > 2:  # of two points each correlation is 1 or -1
            draws.append(float(scaled(x[rows]) @ scaled(y[rows])))
    low, high = np.quantile(draws, [0.025, 0.975])
    return rho, chance, (float(low), float(high))


def scaled(values: np.ndarray) -> np.ndarray:
    """Ranks about 0 at length 1: the product of two is Spearman's correlation."""
    ranks = rankdata(values) - (len(values) + 1) / 2
    return ranks / np.linalg.norm(ranks)


def draw(scores: dict[str, dict], gains: dict[str, list[Gain]], path: Path) -> None:
    """Gain against alignment: a panel for each set, eps and space, two in a row."""
    from matplotlib.figure import Figure

    columns = keys(gains)
    across = min(2, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(4.2 * across, 2.9 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for k, (panel, (images, eps, space)) in enumerate(zip(panels, columns, strict=False)):
        for marker, name in zip(itertools.cycle("ov^sDPX"), gains, strict=False):
            gain = gains[name][k]
            spread = [[gain.gain - gain.interval[0]], [gain.interval[1] - gain.gain]]
            label = name.removeprefix("cifar10-").removeprefix("ablation-")
            panel.errorbar(scores[name]["alignment"], gain.gain, yerr=spread, fmt=marker, capsize=2, label=label)
        panel.axhline(0, color="grey", linewidth=0.5)
        panel.set(title=f"{images}, eps {eps:g}, {space}", xlabel="alignment of gradients", ylabel="fall of 1000 KID")
        panel.title.set_fontsize(8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
