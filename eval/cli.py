"""bigroc eval robust|quality|statistics|study|survey [--field value ...]"""

from collections.abc import Sequence

from eval.quality.config import QualityConfig, StatisticsConfig
from eval.quality.run import run_quality, run_statistics
from eval.quality.summary import format_quality, format_statistics
from eval.robust.config import RobustConfig
from eval.robust.run import run_robust
from eval.study.cli import STUDY
from eval.survey.cli import SURVEY
from robust_models.runtime.command import Command, Described, OneOf, Summary, run

EXAMPLES = """\
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --norm l2 --eps 0.5 --attack pgd --steps 20 --json
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --eps 0.25,0.5,1 --attack autoattack --state aa.json
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --eps 0.5 --attack foolbox:L2PGD --sanity
  bigroc eval quality --images generated.npz --reference train.npz --features classifier:cifar10-l2-small
  bigroc eval quality --images generated/ --reference train/ --metrics fid,is,kid,prc,sfid --protocol tf --json
  bigroc eval quality --images samples.npz --reference VIRTUAL_imagenet256.npz --metrics fid,sfid,prc --protocol adm
  torchrun --nproc-per-node 8 --no-python bigroc eval quality --images generated/ --reference stats.npz --bootstrap 200
  bigroc eval statistics --images train.npz --features inception --out stats.npz
  bigroc study --config ablation_classifier.yaml --quick
  bigroc survey --before generated.npz --after refined.npz --out answers.db
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run(EVAL, argv)


def _format_robust(summary: Summary) -> str:
    count = f"N = {summary['n']}" + (f" (the first of {summary['data_n']})" if summary["n"] < summary["data_n"] else "")
    lines = [f"clean accuracy  {_percent(summary['clean_accuracy'], summary['clean_interval'])}"]
    for result in summary["results"]:
        ball = f"{summary['norm']} eps {result['eps']:g}"
        lines.append(f"robust accuracy {_percent(result['robust_accuracy'], result['interval'])} at {ball}")
        if result["outside_ball"]:
            lines.append(f"  {result['outside_ball']} fooled only from outside the ball: they count as robust")
    if len(summary["results"]) > 1:
        lines.append("an image broken at a smaller eps counts as broken at the larger ones, and is not attacked again")
    precision = f"{summary['precision']} ({summary['precision_reason']})"
    runs = f"{summary['restarts']} restart(s), {precision}; {summary['wall_s']:.1f} s"
    lines.append(f"{count}; {_attack_in_words(summary)}, {runs}")
    return "\n".join(lines + _sanity_in_words(summary.get("sanity")))


def _attack_in_words(summary: Summary) -> str:
    first = summary["results"][0]
    if summary["attack"] != "pgd":
        members = first["settings"].get("members")
        return f"{summary['attack']} of {first['settings']['library']}" + (f": {', '.join(members)}" if members else "")
    step = f"of step {first['step_size']:g}" if len(summary["results"]) == 1 else "at each eps"
    return f"PGD-{first['steps']} {step}"


def _sanity_in_words(sanity: Summary | None) -> list[str]:
    if sanity is None:
        return []
    ground = f"{sanity['n']} images at {sanity['norm']} eps {sanity['eps']:g}"
    if not sanity["figures"]:
        return [f"sanity checks: nothing to check ({ground})"]
    return [f"warning: {text} ({ground})" for text in sanity["warnings"]] or [
        f"sanity checks: no sign of masked gradients ({ground})"
    ]


def _percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.2f} % (95 %: {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


COMMANDS: dict[str, Described] = {
    "robust": Command(
        name="bigroc eval robust",
        about="Clean and robust accuracy of a classifier.",
        schema=RobustConfig,
        work=run_robust,
        format_summary=_format_robust,
        examples=EXAMPLES,
    ),
    "quality": Command(
        name="bigroc eval quality",
        about="How good images are: FID, Inception Score, KID, precision and recall, sFID.",
        schema=QualityConfig,
        work=run_quality,
        format_summary=format_quality,
        examples=EXAMPLES,
    ),
    "statistics": Command(
        name="bigroc eval statistics",
        about="Store an image set's statistics, to compare others with.",
        schema=StatisticsConfig,
        work=run_statistics,
        format_summary=format_statistics,
        examples=EXAMPLES,
    ),
    "study": STUDY,
    "survey": SURVEY,
}

EVAL = OneOf("bigroc eval", "Measures classifiers and image sets.", "measurement", COMMANDS, EXAMPLES)
