"""The survey's file of answers: killed while it is written, found half written, begun where there is no room."""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from eval.survey.answers import Store, read_answers
from eval.survey.order import Item
from robust_models import UserError
from tests.tiny import fill

KILLS = 25
META = {"settings": {}, "sha256": {}}
CLASSES = dict.fromkeys(range(9))
ITEM = Item(3, "before", "after")

# Answers for as long as it lives; each is named once it is confirmed.
ANSWERING = f"""
from itertools import count
from pathlib import Path
from eval.survey.answers import Store
from eval.survey.order import Item
store = Store(Path("PATH"), {META}, {CLASSES})
for i in count(store.count()[1]):
    store.add(f"rater {{i}}", {ITEM}, "left", 7)
    print(i, flush=True)
"""


def raters(path: Path) -> list[str]:
    return [answer.rater for answer in read_answers(path).answers]


def test_no_answer_that_was_confirmed_is_lost_in_25_kills(tmp_path):
    path, draws = tmp_path / "answers.db", random.Random(0)
    argv = [sys.executable, "-c", ANSWERING.replace("PATH", str(path))]
    for _ in range(KILLS):
        before = len(raters(path)) if path.exists() else 0
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
            assert process.stdout is not None
            confirmed = [int(process.stdout.readline()) for _ in range(2)]
            time.sleep(draws.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            confirmed += map(int, process.stdout.read().split())
        found = raters(path)
        assert found == [f"rater {i}" for i in range(len(found))]
        assert len(found) - len(range(confirmed[-1] + 1)) in (0, 1)  # one may have been kept but not yet confirmed
        assert confirmed[0] == before


def test_what_a_kill_left_half_written_is_rolled_back(tmp_path):
    path, found = tmp_path / "answers.db", tmp_path / "found.db"
    store = Store(path, META, CLASSES)
    for rater in ("ann", "bob"):
        store.add(rater, ITEM, "left", 7)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 2")  # pages: all but two are written before the end
        connection.execute("BEGIN")
        for i in range(500):
            row = (f"rater {i}", 3, "pair", "right", "left", 7, "now")
            columns = "rater, number, kind, target, choice, milliseconds, time"
            connection.execute(f"INSERT INTO answers ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        shutil.copy(path, found)
        shutil.copy(f"{path}-journal", f"{found}-journal")
    assert found.stat().st_size > path.stat().st_size  # some of the 500 are in it
    assert raters(found) == raters(path) == ["ann", "bob"]


@pytest.mark.parametrize("free_kb", [0, 4, 16])
@pytest.mark.parametrize("place", ["answers.db", "a/folder/answers.db"])
def test_a_survey_that_finds_no_room_to_begin_says_so_and_begins_once_there_is(tiny_disk, place, free_kb):
    path, filler = tiny_disk / place, fill(tiny_disk, free_kb=free_kb)
    with pytest.raises(UserError, match=r"^out: .*answers\.db .*; make room and run the same command again$"):
        Store(path, META, CLASSES)
    filler.unlink()
    Store(path, META, CLASSES).add("ann", ITEM, "left", 7)
    assert raters(path) == ["ann"]
