"""bigroc train --config NAME.yaml [--out DIR] [--field value ...]"""

from collections.abc import Sequence
from pathlib import Path

from robust_models.checkpoints.checks import check_names, check_reading
from robust_models.errors import UserError
from robust_models.runtime.command import Command, Summary, run
from train.config import TrainConfig

EXAMPLES = """\
  bigroc train --config cifar_l2_small.yaml                    (in runs/cifar_l2_small)
  bigroc train --config cifar_l2_small.yaml --data.path train.npz --out runs/eps1 --attack.eps 1.0
  bigroc train --config cifar_l2.yaml --data.path cifar10:data --out runs/paper --seed 1
  torchrun --nproc-per-node 8 --no-python bigroc train --config imagenet_l2.yaml --data.path imagenet:data
The same command run again continues where it stopped. SIGTERM and Ctrl-C save the state (exit status 75 and 130).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line argv (None: sys.argv) and gives its exit status."""
    return run(TRAIN, argv)


def _check(config: TrainConfig) -> None:
    check_names(config)
    try:
        check_reading(config.init_reading)
    except UserError as error:
        raise UserError(f"init_reading.{error}") from error


def _train(config: TrainConfig) -> Summary | None:
    from train.loop import train

    return train(config)


def _format_summary(summary: Summary) -> str:
    from train.report import table

    checkpoint = Path(summary["checkpoint"])
    precision = f"{summary['precision']} ({summary['precision_reason']})"
    last = f"{checkpoint}: {summary['steps']} steps in {summary['wall_s']:.0f} s, {precision}; held out: "
    lines = [table(checkpoint.parent), last + _in_words(summary["validation"])]
    if "refiner" in summary:
        lines.append(f"{summary['refiner']}: the best refiner; held out: {_in_words(summary['refiner_validation'])}")
    return "\n".join(lines).lstrip("\n")


def _in_words(scores: Summary) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in scores.items()) or "nothing"


TRAIN = Command(
    name="bigroc train",
    about="Adversarial training of a robust classifier.",
    schema=TrainConfig,
    work=_train,
    format_summary=_format_summary,
    examples=EXAMPLES,
    check=_check,
    defaults=lambda recipe: {"out": f"runs/{Path(recipe).stem}"},
    needs_recipe=True,
)
