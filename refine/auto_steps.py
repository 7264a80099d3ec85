"""--steps auto: the fewest steps after which images are no farther from real ones than after the paper's seven."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from refine.auto_judging import MEASURES, Judging, Verdict, compared
from refine.config import RefineConfig
from refine.method import STEPS
from refine.refine_batch import BatchRefiner
from refine.work_folder import WorkFolder
from robust_models.attacks import PGD
from robust_models.runtime.distributed import Ranks

STEPS_FILE = "steps.json"  # in the work folder


@dataclass(frozen=True)
class Fewest:
    """The numbers of steps tried, from 1 on, each compared with STEPS on the same images."""

    tried: tuple[tuple[int, Verdict], ...]

    @property
    def steps(self) -> int:
        """The fewest of them whose distance is not surely larger; STEPS where there are none."""
        return next((steps for steps, verdict in self.tried if not verdict.is_loss), STEPS)


def chosen_steps(
    config: RefineConfig,
    judging: Judging | None,
    refiner: BatchRefiner,
    attack_at: Callable[[int], PGD],
    targets: Tensor | None,
    work: WorkFolder,
    ranks: Ranks,
) -> int:
    """What --steps auto finds, on the first rank, or STEPS where others find it worse; kept for a resumed run."""
    if judging is not None and not work.has(STEPS_FILE):
        found = choose_steps(judging, refiner, attack_at, targets)
        facts: dict[str, Any] = as_plain(found) | {"is_worse": False, "steps_taken": found.steps}
        if found.steps < STEPS:
            usual, few = (replace(refiner, attack=attack_at(steps)) for steps in (STEPS, found.steps))
            verdicts = judging.verdicts(few, targets, before=usual)
            is_worse = any(verdict.is_loss for verdict in verdicts)
            first, *others = (asdict(verdict) for verdict in verdicts)
            facts |= first | {"others": others, "is_worse": is_worse}
            facts["steps_taken"] = STEPS if is_worse and config.auto_accept != "best" else found.steps
        work.write_json(STEPS_FILE, facts)
    ranks.barrier()
    return work.read_json(STEPS_FILE)["steps_taken"]


def choose_steps(
    judging: Judging, refiner: BatchRefiner, attack_at: Callable[[int], PGD], targets: Tensor | None
) -> Fewest:
    """Tries 1, 2, ... steps on the choosing images until the distance is not surely larger; progress on stderr."""

    def features(steps: int) -> Tensor:
        print(f"steps auto: {len(judging.chosen)} images by {steps} steps", file=sys.stderr)
        return judging.see(judging.choosing_images(replace(refiner, attack=attack_at(steps)), targets))[0].cpu()

    usual = features(STEPS)
    tried: list[tuple[int, Verdict]] = []
    for steps in range(1, STEPS):
        tried.append((steps, compared(usual, features(steps), judging.choosing, judge=judging.judges[0].name)))
        if not tried[-1][1].is_loss:
            break
    return Fewest(tuple(tried))


def format_fewest(found: Fewest) -> str:
    """The tries as a table."""
    first = found.tried[0][1]
    name = MEASURES[first.measure].split()[0]
    rows = [
        f"{'steps':>8} {name:>10}   more than with {STEPS} steps (95 %)",
        f"{STEPS:8} {first.distance_before:10.4g}",
    ]
    for steps, verdict in found.tried:
        low, high = verdict.difference_interval
        mark = " <" if steps == found.steps else ""
        rows.append(f"{steps:8} {verdict.distance_after:10.4g}   {low:+.3g} to {high:+.3g}{mark}")
    return "\n".join(rows)


def as_plain(found: Fewest) -> dict[str, Any]:
    """The tries, ready for JSON."""
    tried = [
        {"steps": steps, "distance": verdict.distance_after, "difference_interval": list(verdict.difference_interval)}
        for steps, verdict in found.tried
    ]
    first = found.tried[0][1]
    usual = {"usual_steps": STEPS, "usual_distance": first.distance_before, "measure": first.measure}
    return {"steps": found.steps, **usual, "tried": tried, "table": format_fewest(found)}
