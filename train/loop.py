"""The run: batches in, classifier.safetensors out; killed and started again, it goes on where it stopped."""

import sys
from contextlib import closing, nullcontext
from typing import Any

from robust_models.runtime.distributed import join
from robust_models.runtime.files import exclusive
from robust_models.runtime.signals import Interrupted, StopSignals
from train.config import TrainConfig
from train.loaders.base import dead_workers_reported
from train.report import Reporter, Silence, reporter
from train.run import Run


def train(config: TrainConfig) -> dict[str, Any] | None:
    """Runs the recipe in config.out and gives its summary: paths, steps, wall time, scores on the held-out images.

    SIGTERM and Ctrl-C save the state and leave with signals.EXIT_STATUS. UserError where another process trains in
    config.out. Under torchrun every rank trains on its part of each batch, and the first one writes; the others get no
    summary.
    """
    with StopSignals() as stop, join() as ranks, exclusive(config.out) if ranks.is_first else nullcontext():
        with stop.anywhere():
            run = Run(config, ranks)
        stop.ranks = ranks
        if run.warnings and not run.finished and ranks.is_first:
            print(f"warning: {'; '.join(run.warnings)}", file=sys.stderr)
        with dead_workers_reported(), closing(run.loader), reporter(run, ranks) as report:
            if run.finished and not run.outstanding and ranks.is_first:
                print(f"{config.out}: already finished, at step {run.progress.step}", file=sys.stderr)
            try:
                run_to_end(run, stop, report)
            except Interrupted as interrupted:
                run.save()
                ranks.barrier()  # nobody leaves, and makes torchrun end the others, before the state is saved
                if ranks.is_first:
                    saved = f"saved at step {run.progress.step} of {run.total}"
                    print(f"{interrupted.cause}: {saved}; the same command goes on from there", file=sys.stderr)
                raise
        if run.energy and ranks.is_first and (said := run.energy.shortfall(run.progress.best_scores)):
            print(f"warning: {said}", file=sys.stderr)
        return run.summary() if ranks.is_first else None


def run_to_end(run: Run, stop: StopSignals, report: Reporter | Silence) -> None:
    """All steps that are left, and what is due between them.

    Ranks wait for each other at stop.check() only, so that one that fails, failing before it, is noticed there.
    """
    while True:
        if run.outstanding:
            with stop.anywhere():
                findings = run.measure(stop.check)
            report.write(findings, run.lr)
            run.apply(findings)
        if run.finished:
            break
        with stop.anywhere():
            batch = run.loader.batch(run.progress.step)
        stop.check()
        run.step(*batch)
        report.advance()
