"""What counterfactuals changed: numbers for the manifest, and pictures."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from refine.manifest import DIGITS
from refine.network import Network, confidence
from refine.refine_batch import check_finite
from refine.selection import spread
from refine.synthesis.run import OpenRun
from refine.synthesis.smallest_change import Closest
from refine.work_folder import Row, Shards, WorkFolder, made_once
from robust_models.grids import difference_row, save_rows
from robust_models.images import to_float
from robust_models.images.new_set import NewSet, check_new_out, write_new_set
from robust_models.runtime.command import Summary
from robust_models.runtime.distributed import Ranks
from robust_models.threat import NORMS

Before = Callable[[Tensor], Tensor]  # numbers of counterfactuals [n] -> what they began as, uint8 [n,3,H,W] on the CPU
LENGTHS = ("l1", "l1.5", "l2", "linf")
MID, MOST = 128, 127  # of a change's picture: no change, and how far its strongest one is from there


@torch.no_grad()
def rows_of(
    names: Sequence[str], network: Network, judge: nn.Module | None, x_u8: Tensor, y: Tensor, found: Closest
) -> list[Row]:
    """The rows of the manifest for images x_u8 [n,3,H,W], of these names, and their counterfactuals towards y [n].

    NotFinite where the network gives numbers with which nothing can be done.
    """
    start, x = to_float(x_u8), to_float(found.x_u8)
    before, after = network(start), network(x)
    check_finite(before + after, "logits")
    classes = {"class": y, "class_before": before.argmax(1), "class_after": after.argmax(1)}
    numbers = {
        "target": y,
        "confidence_before": confidence(before, y),
        "confidence_after": confidence(after, y),
        "valid": found.is_valid,
        "eps": found.eps,
        **{name: NORMS[name].length(x - start) for name in LENGTHS},
        "changed": (found.x_u8 != x_u8).any(1).flatten(1).float().mean(1),
        "change_scale": scale_of(x_u8, found.x_u8),
    }
    if judge is not None:
        seen = judge(x)
        classes["judge_class"] = seen.argmax(1)
        numbers |= {"judge_confidence": confidence(seen, y), "judge_valid": seen.argmax(1) == y}
    columns = {name: [network.class_names[i] for i in index.tolist()] for name, index in classes.items()}
    columns |= {name: [_plain(value) for value in column.tolist()] for name, column in numbers.items()}
    return [
        {"source": source, **dict(zip(columns, values, strict=True))}
        for source, values in zip(names, zip(*columns.values(), strict=True), strict=True)
    ]


def _plain(value: float) -> float:
    return round(value, DIGITS) if isinstance(value, float) else value


def medians(work: WorkFolder, shards: Shards) -> dict[str, float | None]:
    """Of the distances and the share of changed pixels, over the valid counterfactuals; None where there are none."""
    names = (*LENGTHS, "changed")
    rows = [[row[name] for name in names] for k in range(len(shards)) for row in work.rows(k) if row["valid"]]
    columns = zip(*rows, strict=True) if rows else [None] * len(names)
    return {
        name: None if column is None else round(statistics.median(column), 4)
        for name, column in zip(names, columns, strict=True)
    }


def scale_of(before_u8: Tensor, after_u8: Tensor) -> Tensor:
    """What each change [n,3,H,W] is multiplied by to be drawn, [n]: the strongest number is then MOST from MID."""
    change = (after_u8.short() - before_u8.short()).abs()
    return MOST / change.flatten(1).amax(1).clamp_min(1)


def drawn_change(before_u8: Tensor, after_u8: Tensor) -> Tensor:
    """What changed, x_u8 [n,3,H,W]: MID + scale_of(...) * (after - before)."""
    change = after_u8.short() - before_u8.short()
    return (MID + scale_of(before_u8, after_u8).view(-1, 1, 1, 1) * change).round().to(torch.uint8)


def check_changes(out: Path, run: OpenRun, ranks: Ranks, *, overwrite: bool) -> None:
    """UserError, before any work, where the set of changes may not be written."""
    check_new_out(out, overwrite=True)
    if ranks.is_first:
        WorkFolder(out).finished(run.settings, overwrite=overwrite)


def write_changes(out: Path, run: OpenRun, new: NewSet, before: Before, shards: Shards, *, overwrite: bool) -> None:
    """Writes the pictures of all changes as a set; what an earlier run with equal settings left there is kept."""
    work = WorkFolder(out)

    def make(_: None) -> Summary:
        work.drop_assembled()
        done = 0
        with write_new_set(work.assembled, new) as add:

            def add_change(after_u8: Tensor) -> None:
                nonlocal done
                add(drawn_change(before(torch.arange(done, done + len(after_u8))), after_u8))
                done += len(after_u8)

            run.work.copy_pixels(shards, lambda _: add_change)
        return {"out": str(out), "n": done}

    made_once(Ranks(), work, run.settings, overwrite=overwrite, begin=lambda: None, make=make)


def save_grid(path: Path, count: int, norm: str, before: Before, work: WorkFolder, shards: Shards) -> None:
    """Some images, their counterfactuals and what changed."""
    index = spread(shards.n, count)
    x_u8, after = before(index), torch.cat([work.image(shards, i) for i in index.tolist()])
    captions = [
        f"{row['class_before']} > {row['class']}\n{row['confidence_after']:.0%}, {row[norm]:.3g}"
        for row in work.rows_of(shards, index.tolist())
    ]
    note = f"Below: what the classifier said > is to say, how probable that is now, and the {norm} distance."
    save_rows(path, [("before", x_u8), ("after", after), difference_row(x_u8, after)], captions, note=note)
