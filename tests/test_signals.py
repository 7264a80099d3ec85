"""SIGTERM and Ctrl-C, really sent: the status, the line to go on with, nothing lost. More of eval: test_eval_kills."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from bigroc.cli import main as bigroc
from eval.study.plan import Job
from eval.study.run import work as work_on
from eval.study.store import Place
from robust_models import UserError
from robust_models.runtime.command import run
from robust_models.runtime.signals import Interrupted, leave_on_signals, leaving_on_signals
from tests.study import values, write_inputs
from tests.tiny import tiny_pixels

ROOT = Path(__file__).parents[1]
PACKAGES = ("robust_models", "train", "refine", "eval", "bigroc")
MAINS = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("__main__.py"))]
STOPS = [(signal.SIGTERM, 75), (signal.SIGINT, 130)]


def stopped_at(words: str, folder: Path, number: int, is_time: Callable[[], bool]) -> tuple[int, str]:
    """`python -m WORDS` in the folder, signalled once is_time: its exit status and stderr."""
    command = [sys.executable, "-m", *words.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment) as process:
        while process.poll() is None and not is_time():
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
    assert "Traceback" not in error
    return process.returncode, error


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch) -> Path:
    """The current folder, with c.safetensors and 48 images in x.npz."""
    pixels, labels = tiny_pixels(48)
    np.savez(tmp_path / "x.npz", arr_0=pixels, arr_1=labels)
    checkpoint.rename(tmp_path / "c.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFINE = (  # in float32, whatever the machine: the process that is stopped is not this one
    "refine --ckpt c.safetensors --input x.npz --eps 1 --steps 5 --shard-size 2 --precision fp32 --out y.npz"
)
ROBUST = "eval robust --ckpt c.safetensors --data x.npz --eps 0.5 --steps 40 --batch-size 2 --device cpu --state s.json"


@pytest.mark.parametrize(("number", "status"), STOPS)
def test_a_refinement_goes_on_to_the_bytes_of_one_that_was_not_stopped(folder, capfd, number, status):
    shards = folder / "y.npz.work"
    code, error = stopped_at(REFINE, folder, number, lambda: len([*shards.glob("shard-*.npy")]) > 1)
    done = len([*shards.glob("shard-*.npy")])
    assert 1 < done < 24
    assert (code, error.count(f"go on with: bigroc {REFINE}\n")) == (status, 1), error
    assert not (folder / "y.npz").exists()
    assert bigroc(REFINE.split()) == 0
    assert f" {48 - 2 * done}/{48 - 2 * done} [" in capfd.readouterr().err  # images, in the progress bar
    assert bigroc(REFINE.replace("y.npz", "whole.npz").split()) == 0
    ours, theirs = (np.load(folder / name)["arr_0"] for name in ("y.npz", "whole.npz"))
    assert np.array_equal(ours, theirs)


def test_robust_accuracy_stopped_by_ctrl_c_goes_on_from_its_state(folder):
    state = folder / "s.json"
    code, error = stopped_at(ROBUST, folder, signal.SIGINT, lambda: state.exists() and stages(state)[-1]["done"] > 4)
    assert (code, error.count(f"go on with: bigroc {ROBUST}\n")) == (130, 1), error
    assert "kept in s.json; the same command goes on\n" in error
    before = stages(state)
    assert 4 < before[-1]["done"] < 48
    assert bigroc(ROBUST.split()) == bigroc(ROBUST.replace("s.json", "whole.json").split()) == 0
    ours, theirs = stages(state), stages(folder / "whole.json")
    assert [(s["survived"], s["done"]) for s in ours] == [(s["survived"], s["done"]) for s in theirs]
    assert ours[: len(before) - 1] == before[:-1]


def stages(state: Path) -> list[dict]:
    return json.loads(state.read_text())["stages"] or [{"done": 0}]


def test_a_study_stopped_by_ctrl_c_goes_on_from_the_jobs_that_are_done(tmp_path):
    write_inputs(tmp_path)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values(tmp_path)))
    code, error = stopped_at(
        f"eval study --config {recipe}", tmp_path, signal.SIGINT, lambda: len(finished(tmp_path)) > 1
    )
    assert (code, error.count(f"go on with: bigroc study --config {recipe}\n")) == (130, 1), error
    before = finished(tmp_path)
    assert 1 < len(before) < 8
    assert bigroc(["study", "--config", str(recipe)]) == 0
    after = finished(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 9


def finished(root: Path) -> dict[Path, int]:
    """The results of the study's jobs, and when they were written."""
    return {file: file.stat().st_mtime_ns for file in (root / "out").glob("*/*.json")}


@pytest.mark.parametrize(("number", "status"), STOPS)
def test_every_command_is_left_at_once_and_handlers_are_as_before(number, status):
    before = [signal.getsignal(one) for one, _ in STOPS]

    def patient(_) -> int:
        signal.raise_signal(number)
        raise AssertionError("went on")

    with pytest.raises(Interrupted) as left:
        run(patient, [])
    assert left.value.code == status
    assert run(lambda _: 0, []) == 0
    assert [signal.getsignal(one) for one, _ in STOPS] == before


def taken_for_something_else(*_: object) -> dict:
    """What torch.asarray does where a signal comes while it asks a storage for its length."""
    try:
        signal.raise_signal(signal.SIGINT)
    except Interrupted as error:
        raise ValueError("could not determine the shape") from error
    raise AssertionError("went on")


@pytest.mark.parametrize("error", [ValueError, UserError])
def test_a_signal_that_a_library_took_for_an_error_of_its_own_still_ends_the_command(error):
    def work(_) -> int:
        try:
            return len(taken_for_something_else())
        except ValueError:
            raise error("no such thing") from None

    with pytest.raises(Interrupted) as left:
        run(work, [])
    assert left.value.code == 130
    with pytest.raises(ZeroDivisionError):  # an error of the next command is one
        run(lambda _: 1 // 0, [])


def test_a_study_does_not_take_a_signal_for_the_failure_of_a_job(tmp_path):
    job = Job(Place(tmp_path, "cells", "key"), "a cell", {"versions": {}}, taken_for_something_else)
    with leaving_on_signals(), pytest.raises(Interrupted):
        work_on(lambda: [job])
    assert not job.place.failed.exists()


def test_a_command_in_another_thread_leaves_the_handlers_alone():
    before, found = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: found.append((run(lambda _: 0, []), leave_on_signals())))
    thread.start()
    thread.join()
    assert found == [(0, {})]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("file", MAINS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_python_m_begins_with_the_signals(file):
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {name.id for name in calls if isinstance(name, ast.Name)}
    assert names == ({"main"} if file.parent.name == "bigroc" else {"enter"})  # bigroc.cli.main begins so itself


SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = [".".join(file.parent.relative_to(ROOT).parts) for file in MAINS]
ENTRIES = {  # every door, and what Python runs behind it
    **{
        f"python -m {name}": f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
        for name in MODULES
    },
    **{
        name: "from {} import {} as main; sys.exit(main())".format(*place.split(":")) for name, place in SCRIPTS.items()
    },
}
WORDS_OF = {
    "bigroc": ["refine"],
    "python -m bigroc": ["refine"],
    "bigroc-eval": ["robust"],
    "python -m eval": ["robust"],
}


def handles_signals(process: subprocess.Popen) -> bool:
    """Whether the process has its handlers: SIGTERM's is set first, and Python itself has one for SIGINT."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_has_its_handlers_before_the_seconds_of_importing_torch(entry):
    heavy = {"torch", "numpy", "pydantic", "yaml", "PIL"}
    code = (
        "import signal, sys\n"
        "def report(*_):\n"
        f"    print({heavy} & set(sys.modules), flush=True)\n"
        "    sys.exit(0)\n"
        "signal.signal = report\n" + ENTRIES[entry]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc whether the handlers are there")
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_says_that_it_was_stopped_at_any_moment_of_its_start(entry, folder):
    words = [*WORDS_OF.get(entry, []), "--ckpt", "c.safetensors"]
    code = f"import sys; sys.argv[1:] = {words}\n{ENTRIES[entry]}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    tried = 0
    for tenth in range(1, 11):
        number, status = STOPS[tenth % 2]
        with subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            time.sleep(tenth / 10)
            is_python_itself = process.poll() is None and not handles_signals(process)  # still, on a busy machine
            process.send_signal(number)
            error = process.communicate(timeout=60)[1]
        if is_python_itself:
            continue
        # 2: it had already ended, for want of flags
        assert process.returncode in (status, 2), f"{tenth / 10} s: {process.returncode} {error}"
        assert "Traceback" not in error
        tried += 1
    assert tried > 4


@pytest.mark.parametrize(("number", "status"), STOPS)
@pytest.mark.parametrize("where", ["in it", "in what it imports"])
def test_an_import_that_passes_over_exceptions_does_not_hide_a_signal(tmp_path, number, status, where):
    raising = f"import signal\nsignal.raise_signal({int(number)})\n"
    swallowing = f"try:\n    {'import inner' if where != 'in it' else raising.replace(chr(10), chr(10) + '    ')}\n"
    (tmp_path / "inner.py").write_text(raising)
    (tmp_path / "outer.py").write_text(f"{swallowing}except BaseException:\n    pass\n")
    code = "from robust_models.runtime.command import run; run(lambda _: __import__('outer') and 0, [])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status, ended.stderr
