"""The run: batches in, classifier.safetensors out; killed and started again, it goes on where it stopped."""

import sys
from contextlib import closing
from typing import Any

from robust_models.runtime.distributed import join
from train.config import TrainConfig
from train.report import Reporter, Silence, reporter
from train.run import Run
from train.sigterm import Interrupted, Sigterm


def train(config: TrainConfig) -> dict[str, Any] | None:
    """Runs the recipe in config.out and gives its summary: paths, steps, wall time, scores on the held-out images.

    SIGTERM saves the state and leaves with the exit status sigterm.EXIT_STATUS. Under torchrun every rank trains on its
    part of each batch, and the first one writes; the others get no summary.
    """
    with join() as ranks:
        run = Run(config, ranks)
        with closing(run.loader), Sigterm(ranks) as sigterm, reporter(run, ranks) as report:
            try:
                run_to_end(run, sigterm, report)
            except Interrupted:
                run.save()
                ranks.barrier()  # nobody leaves, and makes torchrun end the others, before the state is saved
                if ranks.is_first:
                    step = run.progress.step
                    print(f"SIGTERM: saved at step {step}; the same command goes on from there", file=sys.stderr)
                raise
        return run.summary() if ranks.is_first else None


def run_to_end(run: Run, sigterm: Sigterm, report: Reporter | Silence) -> None:
    """All steps that are left, and what is due between them.

    Ranks wait for each other at sigterm.obey() only, so that one that fails, failing before it, is noticed there.
    """
    while True:
        if run.outstanding:
            with sigterm.at_once():
                findings = run.look(sigterm.obey)
            report.tell(findings, run.lr)
            run.settle(findings)
        if run.finished:
            break
        with sigterm.at_once():
            batch = run.loader.batch(run.progress.step)
        sigterm.obey()
        run.step(*batch)
        report.advance()
