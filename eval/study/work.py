"""Doing jobs until none is left, beside however many processes that do the same."""

import functools
import sys
import time
from collections.abc import Callable, Sequence

from eval.study.plan import Job
from robust_models.runtime.run_folder import environment

POLL_S = 1.0  # between looks at what others are doing


def work(jobs: Callable[[], Sequence[Job]]) -> None:
    """Until each of jobs(), which may grow as results come in, is done or has failed.

    A job that another process has claimed is left to it, and taken over should it die.
    """
    while pending := [job for job in jobs() if not job.place.is_settled]:
        if not any(_attempt(job, len(pending)) for job in pending):
            time.sleep(POLL_S)


def clear_failures(jobs: Sequence[Job]) -> None:
    """What failed in an earlier run is tried again."""
    for job in jobs:
        job.place.failed.unlink(missing_ok=True)


_environment = functools.cache(environment)  # it asks git, which takes longer than a small job


def _attempt(job: Job, pending: int) -> bool:
    """Does the job; False where another process has it."""
    with job.place.claim() as mine:
        if not mine:
            return False
        if not job.place.is_settled:  # it may have been, by the last holder of the claim
            print(f"{pending} to do: {job.label}", file=sys.stderr)
            _do(job)
        return True


def _do(job: Job) -> None:
    started = time.perf_counter()
    try:
        found = job.work(job.place)
    except Exception as error:  # whatever it is, it is this job's; the others go on
        line = job.place.write_error(error, time.perf_counter() - started)
        print(f"failed: {job.label}: {line}", file=sys.stderr)
        return
    seconds = time.perf_counter() - started
    told = {"depends": job.depends, "environment": _environment(), "wall_s": round(seconds, 3)}
    job.place.write({**found, **told}, seconds)
