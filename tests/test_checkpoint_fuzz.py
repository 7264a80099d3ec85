"""Over a hundred hostile files, and what fuzzing kept: each read in bounded time and memory, to one line, to no effect.

They are read in a process of its own, which takes any audit event (an import, a system call, an opened file) for a
finding and would leave its last file's name if it crashed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz_corpus"
MAX_SECONDS, MAX_GROWTH_MB = 30, 600  # of one file; a busy machine takes ten times a quiet one's time


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.hostile", str(folder), str(CORPUS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended after {lines[-1:]}: {done.stderr[-2000:]}"
    assert [*folder.iterdir()] == [folder / "file.pt"]
    return {begin["begins"]: report for begin, report in zip(lines[::2], lines[1::2], strict=True)}


def test_hostile_files_end_in_one_line_within_bounded_time_and_memory(reports):
    hostile = {case: report for case, report in reports.items() if not case.startswith("seed: ")}
    assert len(hostile) >= 100
    for case, report in hostile.items():
        assert report["finding"] is None, (case, report)
        assert re.fullmatch(r"ckpt: [ -~]{10,1000}", report["message"]), (case, report)
        assert report["seconds"] < MAX_SECONDS, (case, report)
        assert report["growth_mb"] < MAX_GROWTH_MB, (case, report)


def test_the_seeds_of_fuzzing_still_end_in_an_object_or_one_line(reports):
    seeds = {case: report for case, report in reports.items() if case.startswith("seed: ")}
    assert len(seeds) == len([*CORPUS.iterdir()]) > 50
    assert {case: report["finding"] for case, report in seeds.items() if report["finding"]} == {}
    assert {report["message"] is None for report in seeds.values()} == {True, False}


def test_the_seed_corpus_is_small():
    assert sum(file.stat().st_size for file in CORPUS.iterdir()) < 300_000
