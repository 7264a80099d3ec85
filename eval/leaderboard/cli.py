"""bigroc models evaluate NAMES [--all] --out FOLDER, and the commands of robust_models.cli."""

from dataclasses import replace

from eval.leaderboard.config import EvaluateConfig
from eval.leaderboard.run import check_evaluate, format_evaluate, run_evaluate
from robust_models import cli
from robust_models.runtime.command import Command

EXAMPLES = """\
  bigroc models evaluate --all --out runs/leaderboard --parts balls,gradients,gains
  bigroc models evaluate mine.safetensors,cifar10-l2-small --data TEST.npz --reference TRAIN.npz --out runs/mine
The same command run again continues where it stopped, and measures nothing that is there.
"""

EVALUATE = Command(
    name="bigroc models evaluate",
    about="All that can be measured of classifiers: cards with the commands that repeat it, and a leaderboard.",
    schema=EvaluateConfig,
    work=run_evaluate,
    format_summary=format_evaluate,
    examples=EXAMPLES,
    positionals=("models",),
    check=check_evaluate,
)

MODELS = replace(
    cli.MODELS,
    about="Inspect, convert, measure, share and list checkpoints.",
    commands={**cli.COMMANDS, "evaluate": EVALUATE},
    examples=cli.EXAMPLES + EXAMPLES.splitlines(keepends=True)[0],
)
