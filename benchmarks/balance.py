"""Seconds, memory and total log-probability of balanced targets, beside plain pseudo-labels and a greedy assignment.

    python -m benchmarks.balance [--sizes 50000x10 50000x1000]

Synthetic log-probabilities with a favourite class per image and popular and unpopular classes. Each size runs in a
process of its own, so that its peak memory is its own. The gap is an upper bound of any total, from class prices, less
the total reached: 0 but for rounding.
"""

import argparse
import json
import multiprocessing
import resource
import time

import numpy as np
import torch
from torch import Tensor

from refine.balance import balanced
from robust_models.runtime.version import environment


def crowded_log_probs(n: int, c: int) -> Tensor:
    """float32 [n,c]: a favourite at random, noise, and a class bias that crowds the argmax about 10 to 1 and more."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, c, generator=generator).mul_(3).add_(3 * torch.randn(c, generator=generator))
    logits[torch.arange(n), torch.randint(0, c, (n,), generator=generator)] += 12
    for rows in logits.split(1000):  # no second matrix: it would hide what balancing needs
        rows.sub_(rows.logsumexp(dim=1, keepdim=True))
    return logits


def greedy(log_probs: Tensor, counts: np.ndarray) -> Tensor:
    """The most confident image first, each to the best class that still has a place."""
    scores = log_probs.numpy()
    left = counts.copy()
    closed = np.zeros(len(counts), dtype=np.float32)
    y = np.empty(len(scores), dtype=np.int64)
    for i in np.argsort(-scores.max(axis=1), kind="stable"):
        y[i] = (scores[i] - closed).argmax()
        left[y[i]] -= 1
        if left[y[i]] == 0:
            closed[y[i]] = np.inf
    return torch.from_numpy(y)


def total(log_probs: Tensor, y: Tensor) -> float:
    return float(log_probs.gather(1, y.unsqueeze(1)).double().sum())


def upper_bound(log_probs: Tensor, y: Tensor, counts: np.ndarray) -> float:
    """No assignment with these counts has a higher total: weak duality, with prices recovered from y alone.

    Prices are shortest paths in the graph whose edge a -> b is the least loss of moving an image from a to b.
    """
    scores = log_probs.double()
    own = scores.gather(1, y.unsqueeze(1))
    loss = torch.stack([(own[y == a] - scores[y == a]).amin(dim=0) for a in range(len(counts))])
    prices = torch.zeros(len(counts), dtype=torch.float64)
    for _ in counts:  # Bellman-Ford: price of b is at least the price of a less the loss of a -> b
        nearer = torch.maximum(prices, (prices.unsqueeze(1) - loss).amax(dim=0))
        if torch.equal(nearer, prices):
            break
        prices = nearer
    return float((scores - prices).amax(dim=1).sum() + (prices * torch.from_numpy(counts)).sum())


def measure(n: int, c: int) -> dict:
    log_probs = crowded_log_probs(n, c)
    before = _peak_mib()
    started = time.perf_counter()
    y = balanced(log_probs)
    wall_s = time.perf_counter() - started
    peak = _peak_mib()
    counts = np.bincount(y.numpy(), minlength=c)
    assert np.ptp(counts) <= 1
    guesses = log_probs.argmax(dim=1)
    crowd = torch.bincount(guesses, minlength=c)
    reached = total(log_probs, y)
    return {
        "n": n,
        "classes": c,
        "seconds": round(wall_s, 2),
        "log_probs_mib": round(log_probs.numel() * 4 / 2**20),
        "peak_beyond_mib": round(peak - before),
        "guesses_per_class": [int(crowd.min()), int(crowd.max())],
        "pseudo": total(log_probs, guesses),
        "balanced": reached,
        "gap": upper_bound(log_probs, y, counts) - reached,
        "greedy": total(log_probs, greedy(log_probs, counts)),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["50000x10", "50000x1000"], help="images x classes")
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        n, c = map(int, size.split("x"))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (n, c))
        low, high = row["guesses_per_class"]
        print(f"{n} x {c}, log_probs {row['log_probs_mib']} MiB; {low} to {high} guesses per class")
        print(f"  {row['seconds']} s, peak memory {row['peak_beyond_mib']} MiB beyond what came before")
        for name in ("pseudo", "balanced", "greedy"):
            print(f"  total log-probability {name:<8} {row[name]:14.2f}  ({row[name] / n:8.4f} per image)")
        print(f"  proven gap to the optimum {row['gap']:.2e}", flush=True)
        rows.append(row)
    print(json.dumps({"rows": rows, "environment": environment()}))


if __name__ == "__main__":
    main()
