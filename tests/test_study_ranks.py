"""Studies by several ranks, and studies that are killed at random moments: the table of one undisturbed process."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

import eval.study.plan
from eval.study.cell import run_cell
from eval.study.config import StudyConfig
from tests.study import config, done, log, pretended, scores, study, write_inputs
from tests.test_distributed import finish, free_ports, start

KILLS = 10
PROCESSES = multiprocessing.get_context("forkserver")

RANK = """
import os, sys, time
from pathlib import Path
import eval.study.plan, eval.study.run
from eval.study.run import run_study
from robust_models.errors import UserError
from tests.study import config, pretended

root, rank = Path(sys.argv[1]), os.environ["RANK"]

def both(*args, **named):
    (root / f"at work {rank}").touch()
    while len(list(root.glob("at work *"))) < 2:
        time.sleep(0.02)
    assert os.environ.get("WORLD_SIZE") is None
    return pretended(*args, **named)

eval.study.plan.run_cell = both
eval.study.run._environment = lambda: {"machine": "any"}  # whose imports take longer than all the rest
settings = config(root, eps=[0.25, 0.5, 1, 2])
print(bool(run_study(settings, write_report=lambda results, out: {})))
os.environ["MASTER_PORT"] = sys.argv[2]  # the last meeting place may not be cleared yet
try:
    run_study(config(root, judge="none"), write_report=lambda results, out: {})
except (UserError, SystemExit) as error:
    print(type(error).__name__, error)
"""


def test_two_ranks_share_the_jobs_and_the_first_one_tells(tmp_path, monkeypatch):
    write_inputs(tmp_path)
    ended = finish(start("-c", RANK, tmp_path, *free_ports(1)))
    assert [status for status, _, _ in ended] == [0, 0], ended
    first, second = (out.splitlines() for _, out, _ in ended)
    assert first[0] == "True"
    assert first[1].startswith("UserError judge: features: 'none' is none of")
    assert second == ["False", "PeerFailed 2"]
    settings = config(tmp_path, eps=[0.25, 0.5, 1, 2])
    rows = log(settings.out)
    assert len({row["pid"] for row in rows if row["kind"] == "cells"}) == 2
    assert len({row["key"] for row in rows}) == len(rows) == 2 + 2 + 9  # references, classifiers, cells
    _, results = study(settings)
    assert log(settings.out) == rows
    monkeypatch.setattr(eval.study.plan, "run_cell", pretended)
    _, alone = study(config(tmp_path, eps=[0.25, 0.5, 1, 2], out=str(tmp_path / "alone")))
    assert scores(alone) == scores(results)


def noting(settings: StudyConfig) -> None:
    """A run that writes down each cell that it begins, and whether it was done before."""

    def noted(images, refinement, scorer, place, **named):
        with (settings.out / "begun").open("a") as file:
            file.write(f"{place.key} {place.done.exists()}\n")
        return run_cell(images, refinement, scorer, place, **named)

    eval.study.plan.run_cell = noted
    study(settings)


def begun(settings: StudyConfig) -> list[list[str]]:
    """[key, whether it was done before] of every cell begun."""
    path = settings.out / "begun"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def life(settings: StudyConfig, cells: int | None = None, seconds: float = 0.0) -> float:
    """A process that runs the study, killed so many seconds after it began so many cells; the time that it lived."""
    process = PROCESSES.Process(target=noting, args=(settings,))
    started, before = time.monotonic(), len(begun(settings))
    process.start()
    while cells is not None and process.is_alive() and len(begun(settings)) < before + cells:
        time.sleep(0.01)
    process.join(None if cells is None else seconds)
    lived = time.monotonic() - started
    process.kill()
    process.join()
    assert (process.exitcode == 0) == (cells is None), "the run ended by itself"
    return lived


@pytest.mark.slow
def test_a_study_of_24_cells_killed_10_times_ends_in_the_same_table_and_runs_no_cell_twice(tmp_path: Path):
    write_inputs(tmp_path)
    changed = {
        "images": [{"name": "all", "path": f"{tmp_path}/made.npz"}, {"name": "real", "path": f"{tmp_path}/real.npz"}],
        "classifiers": [{"name": "one", "ckpt": f"{tmp_path}/one.safetensors"}],
        "eps": [0.25 * i for i in range(1, 12)],
        "reference_images": f"{tmp_path}/real.npz",
        "data": f"{tmp_path}/real.npz",
        "robust": {"eps": {"l2": [0.25]}, "steps": 2},
    }
    whole, killed = (config(tmp_path, out=str(tmp_path / name), **changed) for name in ("whole", "killed"))
    PROCESSES.set_forkserver_preload(["tests.study"])
    life(whole, 0)  # starts the server of processes
    whole_s = life(whole)
    cell_s = sum(row["seconds"] for row in log(whole.out) if row["kind"] == "cells") / 24
    rng, reached = random.Random(0), []
    for kill in range(KILLS):
        starting = kill % 5 == 4
        life(killed, *((0, rng.uniform(0, 2)) if starting else (rng.choice([1, 2, 3]), rng.uniform(0, cell_s))))
        reached.append(len(done(killed.out)))
    print(f"whole {whole_s:.1f} s, a cell {cell_s:.2f} s; jobs done after each kill: {reached}")
    assert reached == sorted(reached)
    assert len(set(reached)) > KILLS / 2  # many kills came in the middle of work
    life(killed)

    tables = [scores(study(settings)[1]) for settings in (whole, killed)]
    assert len(tables[0]) == 24 + 1
    assert tables[0] == tables[1]
    keys = done(killed.out)
    assert len(keys) == len(set(keys))  # a kill between a result and its line in the log may lose the line
    assert set(keys) <= set(done(whole.out))
    assert {key for key, _ in begun(killed)} == {key for key, _ in begun(whole)}
    assert all(was_done == "False" for _, was_done in begun(killed))
    assert len(begun(whole)) == 24
    print(f"24 cells, begun {len(begun(killed))} times, none of them after it was done")
