"""The `study` measurement: all jobs of this process, then, where it is to, the results and the report."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.study.config import StudyConfig
from eval.study.gather import collect_results
from eval.study.grid import Share
from eval.study.inputs import open_inputs
from eval.study.plan import Job, Study
from eval.study.results import Results
from eval.study.store import at_work
from eval.study.summary import best_cells, failures
from robust_models.runtime.config import as_plain
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.files import is_no_room, reporting_no_room, write_json
from robust_models.runtime.signals import Interrupted, raise_swallowed
from robust_models.runtime.version import environment

WriteReport = Callable[[Results, Path], Mapping[str, Path | str]]  # gives kind -> path
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
POLL_S = 1.0  # between looks at what others are doing
_environment = functools.cache(environment)  # it asks git, which takes longer than a small job


@dataclass(frozen=True)
class Part:
    """What of a study this command does: all of it, one share of the jobs, or (merge) none, only the report."""

    share: Share | None = None
    merge: bool = False


def run_study(
    config: StudyConfig, part: Part = Part(), *, command: str = "", write_report: WriteReport | None = None
) -> dict[str, Any] | None:
    """Runs what is not done yet and gives the summary, ready for JSON; None on the ranks that helped the first one.

    UserError for bad input before any work. A job that fails is listed in the summary and stops no other.
    """
    started = time.perf_counter()
    with join() as ranks, ExitStack() as stack:
        study = open_study(config, ranks)
        share = part.share or Share()
        stack.enter_context(jobs_done(config, lambda: [] if part.merge else study.jobs(share), ranks, command))
        if not ranks.is_first:
            return None
        results = collect_results(study, command)
        reports: Mapping[str, Path | str] = {}
        if part.share is None and any(not cell.error for cell in results.cells):
            reports = (write_report or _written)(results, config.out)
        said = _said(reports)
    classifiers, cells = study.part(part.share or Share())
    return {
        "out": str(config.out),
        "title": config.title,
        "num_cells": len(study.cells),
        "num_done": sum(not cell.error for cell in results.cells),
        "missing": results.missing + sum(one.pending for one in results.classifiers),
        "share": None
        if part.share is None
        else {"i": part.share.i, "n": part.share.n, "jobs": len(classifiers) + len(cells)},
        "failed": failures(results, classifiers, cells),
        "best": best_cells(results),
        "answer": ({"answer": said["answer"]} if said.get("answer") else {}) | said.get("summary", {}),
        "cautions": said.get("cautions", []),
        "reports": {name: str(path) for name, path in reports.items()},
        "wall_s": round(time.perf_counter() - started, 1),
    }


def _said(reports: Mapping[str, Path | str]) -> dict[str, Any]:
    """What the report says in sentences; {} where none was written."""
    path = reports.get("json")
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def open_study(config: StudyConfig, ranks: Ranks) -> Study:
    """On the first rank first: it may have to download what the others then find."""

    def opened() -> Study:
        device = ranks.device(config.device)
        return Study(config, open_inputs(config, device), device)

    first = opened() if ranks.is_first else None
    ranks.barrier()
    return first or opened()


@contextmanager
def jobs_done(config: Any, jobs: Callable[[], Sequence[Job]], ranks: Ranks, command: str) -> Iterator[None]:
    """Inside, each of jobs() has ended, by this process, the other ranks or another command in config.out.

    On the first rank the folder is known to be worked in until the block ends.
    """
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(at_work(config.out))
            write_json(config.out / "config.json", as_plain(config))
            clear_failures(jobs())
        ranks.barrier()
        with without_ranks(), _standing_said(config.out, jobs, command):
            work(jobs)
        ranks.barrier()
        yield


@contextmanager
def _standing_said(out: Path, jobs: Callable[[], Sequence[Job]], command: str) -> Iterator[None]:
    """What is done, and the command to go on with, on stderr where the process is asked to stop."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        found = jobs()
        done = sum(job.place.done.exists() for job in found)
        print(f"stopped: {done} of {len(found)} jobs are done in {out}", file=sys.stderr)
        print(f"go on with: {command or 'the same command'}", file=sys.stderr)
        raise


@contextmanager
def without_ranks() -> Iterator[None]:
    """Inside, what asks for torchrun's ranks finds none: those of a study share its jobs, not the images of one."""
    found = {name: os.environ.pop(name) for name in _TORCHRUN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(found)


def _written(results: Results, out: Path) -> Mapping[str, str]:
    from eval.study.report import write_report

    return write_report(results, out)


def work(jobs: Callable[[], Sequence[Job]]) -> None:
    """Until each of jobs(), which may grow as results come in, is done or has failed.

    A job that another process has claimed is left to it, and taken over should it die.
    """
    while pending := [job for job in jobs() if not job.place.is_finished]:
        if not any(_attempt(job, len(pending)) for job in pending):
            time.sleep(POLL_S)


def clear_failures(jobs: Sequence[Job]) -> None:
    """What failed in an earlier run is tried again."""
    for job in jobs:
        job.place.failed.unlink(missing_ok=True)


def _attempt(job: Job, pending: int) -> bool:
    """Does the job; False where another process has it."""
    with job.place.claim() as mine:
        if not mine:
            return False
        if not job.place.is_finished:  # it may have been, by the last holder of the claim
            print(f"{pending} to do: {job.label}", file=sys.stderr)
            with reporting_no_room(job.place.out):
                _do(job)
        return True


def _do(job: Job) -> None:
    started = time.perf_counter()
    try:
        found = job.work(job.place)
    except Exception as error:  # whatever it is, it is this job's; the others go on
        raise_swallowed()
        if is_no_room(error):  # but for this, which would fail them all
            raise
        line = job.place.write_error(error, time.perf_counter() - started)
        print(f"failed: {job.label}: {line}", file=sys.stderr)
        return
    seconds = time.perf_counter() - started
    more = {"depends": job.depends, "environment": _environment(), "wall_s": round(seconds, 3)}
    job.place.write({**found, **more}, seconds)
