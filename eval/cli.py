"""python -m eval robust|quality|statistics [--field value ...]"""

import difflib
from collections.abc import Sequence

from eval.config import QualityConfig, RobustConfig, StatisticsConfig
from eval.quality import run_quality, run_statistics
from eval.robust import run_robust
from robust_models.errors import UserError
from robust_models.runtime.command import Command, Summary, run
from robust_models.runtime.config import OneLineParser

EXAMPLES = """\
  python -m eval robust --ckpt cifar10-l2-small --data test.npz --norm l2 --eps 0.5 --attack pgd --steps 20 --json
  python -m eval quality --images generated.npz --reference train.npz --features classifier:cifar10-l2-small
  python -m eval quality --images generated/ --reference stats.npz --features inception --weights pt_inception.pth
  python -m eval statistics --images train.npz --features inception --out stats.npz
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run(_measure, argv)


def _measure(argv: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="python -m eval", description="Measures classifiers and image sets.", epilog=f"examples:\n{EXAMPLES}"
    )
    about = " ".join(f"{name}: {command.about}" for name, command in COMMANDS.items())
    parser.add_argument("measurement", metavar="|".join(COMMANDS), help=about)
    name = parser.parse_args(argv[:1]).measurement
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"{name}: no such measurement; {hint}")
    return COMMANDS[name](argv[1:])


def _tell_robust(summary: Summary) -> str:
    count = f"N = {summary['n']}" + (f" (the first of {summary['data_n']})" if summary["n"] < summary["data_n"] else "")
    attack = f"{summary['attack'].upper()}-{summary['steps']} of step {summary['step_size']:g}"
    ball = f"{summary['norm']} eps {summary['eps']:g}"
    return (
        f"clean accuracy  {_percent(summary['clean_accuracy'], summary['clean_interval'])}\n"
        f"robust accuracy {_percent(summary['robust_accuracy'], summary['interval'])} at {ball}\n"
        f"{count}; {attack}, {summary['restarts']} restart(s), {summary['precision']}; {summary['wall_s']:.1f} s"
    )


def _percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.2f} % (95 %: {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _tell_quality(summary: Summary) -> str:
    name = "FID, the Frechet distance" if "fid" in summary else "Frechet distance"
    space = f"{summary['features']} ({summary['dim']}-d, protocol {summary['protocol']})"
    counts = [str(summary[key] or "unknown") for key in ("n_images", "n_reference")]
    return (
        f"{name} in {space}: {summary['frechet']:.6g}\n"
        f"N = {counts[0]} ({summary['images']}) against N = {counts[1]} ({summary['reference']})"
    )


def _tell_statistics(summary: Summary) -> str:
    return (
        f"{summary['out']}: mean and covariance of {summary['dim']} features in {summary['features']} "
        f"(protocol {summary['protocol']}), N = {summary['n_images']}"
    )


COMMANDS = {
    "robust": Command(
        name="python -m eval robust",
        about="Clean and robust accuracy of a classifier.",
        schema=RobustConfig,
        work=run_robust,
        tell=_tell_robust,
        examples=EXAMPLES,
    ),
    "quality": Command(
        name="python -m eval quality",
        about="Frechet distance between two image sets.",
        schema=QualityConfig,
        work=run_quality,
        tell=_tell_quality,
        examples=EXAMPLES,
    ),
    "statistics": Command(
        name="python -m eval statistics",
        about="Store an image set's statistics, to compare others with.",
        schema=StatisticsConfig,
        work=run_statistics,
        tell=_tell_statistics,
        examples=EXAMPLES,
    ),
}
