"""--steps auto: the fewest steps that keep what the paper's seven gain.

They keep it where the distance to real images exceeds that of seven steps by no more than LOSS of the gain: the upper
end of the 95 % interval of the difference, which resamples the images, both results alike.
"""

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
LOSS = 0.1  # the share of the gain that may be lost


@dataclass(frozen=True)
class Fewest:
    """What STEPS steps gain, and the numbers of steps tried, from 1 on, each compared with STEPS on the same images."""

    gain: Verdict
    tried: tuple[tuple[int, Verdict], ...]

    @property
    def steps(self) -> int:
        """The fewest that keep the gain; STEPS where none of them do."""
        return next((steps for steps, verdict in self.tried if keeps(self.gain, verdict)), STEPS)


def margin(gain: Verdict) -> float:
    """By how much the distance may be larger than that of STEPS steps."""
    return max(0.0, LOSS * (gain.distance_before - gain.distance_after))


def keeps(gain: Verdict, fewer: Verdict) -> bool:
    """Whether the steps that `fewer` compares with STEPS surely keep the gain of the latter."""
    return fewer.difference_interval[1] <= margin(gain)


def chosen_steps(
    config: RefineConfig,
    judging: Judging | None,
    refiner: BatchRefiner,
    attack_at: Callable[[int], PGD],
    targets: Tensor | None,
    work: WorkFolder,
    ranks: Ranks,
) -> int:
    """What --steps auto finds, on the first rank, or STEPS where others do not confirm it; kept for a resumed run."""
    if judging is not None and not work.has(STEPS_FILE):
        found = choose_steps(judging, refiner, attack_at, targets)
        facts: dict[str, Any] = as_plain(found) | {"steps_taken": found.steps}
        if found.steps < STEPS:
            usual, few = (replace(refiner, attack=attack_at(steps)) for steps in (STEPS, found.steps))
            raw, usual, few = (judging.held_out(one, targets) for one in (None, usual, few))
            gains, verdicts = judging.verdicts(raw, usual), judging.verdicts(usual, few)
            kept = [keeps(gain, verdict) for gain, verdict in zip(gains, verdicts, strict=True)]
            first, *others = (
                asdict(verdict) | {"margin": margin(gain)} for gain, verdict in zip(gains, verdicts, strict=True)
            )
            facts |= first | {"others": others, "is_kept": all(kept)}
            facts["steps_taken"] = found.steps if all(kept) or config.auto_accept == "best" else STEPS
        work.write_json(STEPS_FILE, facts)
    ranks.barrier()
    return work.read_json(STEPS_FILE)["steps_taken"]


def choose_steps(
    judging: Judging, refiner: BatchRefiner, attack_at: Callable[[int], PGD], targets: Tensor | None
) -> Fewest:
    """Tries 1, 2, ... steps on the choosing images until some keep the gain; progress on stderr."""

    def features(steps: int) -> Tensor:
        print(f"steps auto: {len(judging.chosen)} images by {steps} steps", file=sys.stderr)
        return judging.see(judging.choosing_images(replace(refiner, attack=attack_at(steps)), targets))[0].cpu()

    raw, usual = judging.see(judging.choosing_images(None, targets))[0].cpu(), features(STEPS)
    gain = compared(raw, usual, judging.choosing)
    tried: list[tuple[int, Verdict]] = []
    for steps in range(1, STEPS):
        tried.append((steps, compared(usual, features(steps), judging.choosing)))
        if keeps(gain, tried[-1][1]):
            break
    return Fewest(gain, tuple(tried))


def format_fewest(found: Fewest) -> str:
    """The tries as a table."""
    gain = found.gain
    name = MEASURES[gain.measure].split()[0]
    rows = [
        f"{'steps':>8} {name:>10}   more than of {STEPS} (95 %; up to {margin(gain):.3g} keeps the gain)",
        f"{0:8} {gain.distance_before:10.4g}",
        f"{STEPS:8} {gain.distance_after:10.4g}",
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
    return {
        "steps": found.steps,
        "usual_steps": STEPS,
        "measure": found.gain.measure,
        "raw_distance": found.gain.distance_before,
        "usual_distance": found.gain.distance_after,
        "chosen_margin": margin(found.gain),
        "tried": tried,
        "table": format_fewest(found),
    }
