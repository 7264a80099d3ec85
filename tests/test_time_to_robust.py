"""The benchmark of training time: what its clock counts, and that its presets are runs."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import time_to_robust
from benchmarks.time_to_robust import PRESETS, configs, train_timed
from robust_models.runtime.signals import Interrupted
from tests.test_distributed import finish, start
from tests.test_train import tiny_config
from train.run import Run
from train.state import load_state


@pytest.mark.parametrize("preset", PRESETS)
def test_every_run_of_a_preset_has_a_name_and_a_config_of_its_own(preset):
    args = Namespace(preset=preset, seeds="0,1", out=Path("out"), data="cifar10")
    runs = list(configs(args, {}))
    names = [name["run"] for name, _ in runs]
    assert len(set(names)) == len(names) == 2 * len(PRESETS[preset])
    assert len({config.out for _, config in runs}) == len(names)
    assert {config.seed for _, config in runs} == {0, 1}


def test_the_clock_of_a_stopped_run_goes_on_and_counts_no_warming_up(tmp_path, labelled_npz, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def warm_up(run: Run) -> float:
        nonlocal now
        now += 1000
        return 1000.0

    def ten_seconds_a_step(run: Run, stop: object, report: object) -> None:
        nonlocal now
        while not run.finished:
            run.step(*run.loader.batch(run.progress.step))
            now += 10
            run.apply(run.measure(lambda: None))
            if run.progress.step == stops_at:
                raise Interrupted

    monkeypatch.setattr(time_to_robust, "warm_up", warm_up)
    monkeypatch.setattr(time_to_robust, "run_to_end", ten_seconds_a_step)
    config = replace(tiny_config(tmp_path / "run", labelled_npz, epochs="2"), save_minutes=1e6)
    stops_at = 3
    with pytest.raises(Interrupted):
        train_timed(config)
    stopped = load_state(config.out)
    assert stopped is not None
    assert (stopped.progress.step, stopped.progress.wall_s) == (3, 30)
    stops_at = 0
    assert train_timed(config)["train_s"] == 80
    assert train_timed(config)["train_s"] == 80  # nothing is left to do


def test_two_ranks_make_one_curve(tmp_path):
    words = ["--config", "cifar_l2_small.yaml", "--arch", "preact_resnet10_w16", "--epochs", "1", "--device", "cpu"]
    words += ["--data", "bundled:cifar10-test-500", "--test", "bundled:cifar10-test-500", "--out", tmp_path / "curve"]
    words += ["--data.validation", "32", "--data.limit", "64", "--batch-size", "16", "--validate.steps", "1"]
    words += ["--test-images", "6", "--standard-images", "0"]
    ended = finish(start("-m", "benchmarks.time_to_robust", *words))
    assert [status for status, _, _ in ended] == [0, 0], ended
    (row,) = map(json.loads, (tmp_path / "curve" / "curve.jsonl").read_text().splitlines())
    assert (row["ranks"], row["n"], row["steps"]) == (2, 6, 4)
    assert "epochs1_seed0" in ended[0][1]
    assert ended[1][1] == ""
