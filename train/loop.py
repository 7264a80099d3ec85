"""The run: batches in, classifier.safetensors out; killed and started again, it goes on where it stopped."""

import sys
from contextlib import closing
from typing import Any

from train.config import TrainConfig
from train.report import Reporter
from train.run import Run
from train.sigterm import Interrupted, Sigterm


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs the recipe in config.out and gives its summary: paths, steps, wall time, scores on the held-out images.

    SIGTERM saves the state and leaves with the exit status sigterm.EXIT_STATUS.
    """
    run = Run(config)
    with closing(run.loader), Sigterm() as sigterm, Reporter(config, run.progress, run.total) as report:
        try:
            while True:
                if run.validation_due:
                    with sigterm.at_once():
                        scores, shown = run.validate()
                    report.scores(scores, shown)
                    run.judge(scores)
                    run.save(report.wall_s)
                if run.finished:
                    break
                with sigterm.at_once():
                    batch = run.loader.batch(run.progress.step)
                run.step(*batch)
                report.advance()
                if run.row_due:
                    report.row(run.take_pending(), run.lr)
                if run.guard_due:
                    report.guard(run.guard())
                sigterm.obey()
        except Interrupted:
            run.save(report.wall_s)
            print(f"SIGTERM: saved at step {run.progress.step}; the same command goes on from there", file=sys.stderr)
            raise
    return {
        "checkpoint": str(run.checkpoint),
        "steps": run.progress.step,
        "wall_s": round(run.progress.wall_s, 1),
        "validation": run.progress.best_scores,
    }
