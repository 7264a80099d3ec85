"""The `study` measurement: all jobs of this process, then, where it is to, the results and the report."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.study.config import StudyConfig
from eval.study.grid import Share
from eval.study.merge import collect_results
from eval.study.opened import open_inputs
from eval.study.plan import Study
from eval.study.results import Results
from eval.study.store import make_folder
from eval.study.tell import best_cells, failures
from eval.study.work import clear_failures, work
from robust_models.runtime.config import as_plain
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.run_folder import write_json

WriteReport = Callable[[Results, Path], Mapping[str, Path | str]]  # gives kind -> path
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Part:
    """What of a study this command does: all of it, one share of the jobs, or (merge) none, only the report."""

    share: Share | None = None
    merge: bool = False


def run_study(
    config: StudyConfig, part: Part = Part(), *, command: str = "", write_report: WriteReport | None = None
) -> dict[str, Any] | None:
    """Runs what is not done yet and gives the summary, ready for JSON; None on the ranks that helped the first one.

    UserError for bad input before any work. A job that fails is told in the summary and stops no other.
    """
    started = time.perf_counter()
    with join() as ranks:
        study = open_study(config, ranks)
        if ranks.is_first:
            make_folder(config.out)
            write_json(config.out / "config.json", as_plain(config))
            if not part.merge:
                clear_failures(study.jobs(part.share or Share()))
        ranks.barrier()
        if not part.merge:
            with by_itself():
                work(lambda: study.jobs(part.share or Share()))
        ranks.barrier()
        if not ranks.is_first:
            return None
        results = collect_results(study, command)
        reports: Mapping[str, Path | str] = {}
        if part.share is None and any(not cell.error for cell in results.cells):
            reports = (write_report or _written)(results, config.out)
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
        "reports": {name: str(path) for name, path in reports.items()},
        "wall_s": round(time.perf_counter() - started, 1),
    }


def open_study(config: StudyConfig, ranks: Ranks) -> Study:
    """On the first rank first: it may have to download what the others then find."""

    def opened() -> Study:
        device = ranks.device(config.device)
        return Study(config, open_inputs(config, device), device)

    first = opened() if ranks.is_first else None
    ranks.barrier()
    return first or opened()


@contextmanager
def by_itself() -> Iterator[None]:
    """Inside, what asks for torchrun's ranks finds none: those of a study share its jobs, not the images of one."""
    found = {name: os.environ.pop(name) for name in _TORCHRUN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(found)


def _written(results: Results, out: Path) -> Mapping[str, str]:
    from eval.report import write_report  # brings matplotlib

    return write_report(results, out)
