"""The study of augmentation: its jobs, shared as those of every study are, then the report."""

import time
from contextlib import ExitStack
from typing import Any

from pydantic import TypeAdapter

from eval.study.augmentation.cells import Augmentation
from eval.study.augmentation.config import AugmentationConfig
from eval.study.augmentation.summary import answer, cautions, report, rows
from eval.study.run import jobs_done
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.files import whole_file, write_json


def run_augmentation(config: AugmentationConfig, *, command: str = "") -> dict[str, Any] | None:
    """Trains what is not trained yet and gives the summary, ready for JSON; None on ranks that helped the first one.

    UserError for bad input before any work. A job that fails is listed in the summary and stops no other.
    """
    started = time.perf_counter()
    with join() as ranks, ExitStack() as stack:
        study = open_augmentation(config, ranks)
        stack.enter_context(jobs_done(config, study.jobs, ranks, command))
        if not ranks.is_first:
            return None
        found = study.results()
        table, missing = rows(config, found), len(study.cells) - len(found)
        said, notes = answer(table), cautions(config, missing)
        text = report(config, table, said, notes)
        with whole_file(config.out / "report.md") as partial:
            partial.write_text(text, encoding="utf-8")
        plain = TypeAdapter(list[dict[str, Any]]).dump_python(table, mode="json")
        results = {"answer": said, "cautions": notes, "rows": plain, "cells": [*found.values()]}
        write_json(config.out / "results.json", results)
        failed = [(job, line) for job in study.jobs() if (line := job.place.error()) is not None]
    return {
        "out": str(config.out),
        "title": config.title,
        "num_cells": len(study.cells),
        "num_done": len(found),
        "failed": [{"job": job.label, "error": line} for job, line in failed],
        "answer": said,
        "cautions": notes,
        "rows": plain,
        "table": text,
        "reports": {"markdown": str(config.out / "report.md"), "json": str(config.out / "results.json")},
        "wall_s": round(time.perf_counter() - started, 1),
    }


def open_augmentation(config: AugmentationConfig, ranks: Ranks) -> Augmentation:
    """On the first rank first: it may have to download what the others then find."""
    device = ranks.device(config.device)
    first = Augmentation(config, device) if ranks.is_first else None
    ranks.barrier()
    return first or Augmentation(config, device)
