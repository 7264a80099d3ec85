import errno
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train.run
from robust_models import PGD, RobustClassifier, UserError, load, save, to_float
from robust_models.datasets import load_dataset
from robust_models.runtime.config import resolve
from robust_models.runtime.signals import Interrupted, StopSignals
from tests.tiny import loader_of, tiny_classifier
from train.augment import augment, jitter, random_crop, rotate
from train.config import AugmentConfig, TrainConfig, at
from train.copies import EMA
from train.loop import train as run
from train.report import MetricsLog, read_metrics
from train.start import make_model
from train.state import load_state
from train.step import attack_at, one_cycle, step_decay, train_step
from train.validation import overfitting


def tiny_config(out: Path, data: Path, **fields) -> TrainConfig:
    values = {
        "out": str(out),
        "arch": "preact_resnet10_w16",
        "epochs": 4,
        "batch_size": 16,
        "ema_decay": 0.5,
        "log_every": 2,
        "device": "cpu",
        "data": {"path": str(data), "validation": 32},
        "augment": {"crop_padding": 1},
        "attack": {"eps": 0.25, "step_size": 0.1, "steps": 2, "random_start": True},
        "optimizer": {"lr": 0.1, "schedule": "one_cycle"},
        "validate": {"steps": 2},
    }
    return resolve(TrainConfig, values, fields)


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    """Training in the block is interrupted before this step, without being asked to stop."""
    real = train.run.train_step

    def dies(*args: Any, step: int, **rest: Any) -> Any:
        if step == last:
            raise KeyboardInterrupt
        return real(*args, step=step, **rest)

    last = step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.run, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_run_learns_and_leaves_what_it_promises(tmp_path, labelled_npz):
    out = tmp_path / "run"
    summary = run(tiny_config(out, labelled_npz, epochs="8"))
    assert summary["validation"]["clean_accuracy"] > 0.6
    assert summary["validation"]["n"] == 32
    assert summary["steps"] == 8 * 4

    model = load(summary["checkpoint"])
    assert model.description.threat_model is not None
    assert (model.description.threat_model.norm, model.description.threat_model.eps) == ("l2", 0.25)
    assert model.description.recipe["epochs"] == 8
    assert model.description.scores["validation"] == summary["validation"]

    recorded = json.loads((out / "config.json").read_text())
    assert recorded["config"]["batch_size"] == 16
    assert recorded["environment"]["torch"] == torch.__version__
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(2, 33, 2))
    assert [row["step"] for row in rows if row["kind"] == "validation"] == list(range(4, 33, 4))
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    for name in ("loss", "accuracy", "grad_norm", "lr", "images_per_s"):
        assert len(events.Scalars(f"train/{name}")) == 16
    assert len(events.Images("validation/attacked")) > 0
    assert len(events.Scalars("validation/robust_accuracy")) == 8


def test_the_best_of_the_held_out_scores_is_kept(tmp_path, labelled_npz):
    summary = run(tiny_config(tmp_path / "run", labelled_npz))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    robust = [row["robust_accuracy"] for row in rows if row["kind"] == "validation"]
    assert summary["validation"]["robust_accuracy"] == max(robust)


def test_a_killed_run_resumed_equals_the_uninterrupted_one_bit_for_bit(tmp_path, labelled_npz, monkeypatch):
    whole = run(tiny_config(tmp_path / "whole", labelled_npz, log_every="3"))

    def killed_at_step_9(*args, step, **rest):
        if step == 9:
            raise KeyboardInterrupt
        return train_step(*args, step=step, **rest)

    config = tiny_config(tmp_path / "killed", labelled_npz, log_every="3")
    with monkeypatch.context() as patch:
        patch.setattr(train.run, "train_step", killed_at_step_9)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    resumed = run(config)
    assert resumed["validation"] == whole["validation"]
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed")]
    for part in ("model", "ema"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    numbers = [
        [
            {k: v for k, v in row.items() if k != "images_per_s"}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "killed")
    ]
    assert numbers[0] == numbers[1]


def test_sigterm_saves_within_a_step_and_the_run_resumed_equals_the_uninterrupted_one(
    tmp_path, labelled_npz, monkeypatch, capsys
):
    whole = run(tiny_config(tmp_path / "whole", labelled_npz, log_every="3"))
    config = tiny_config(tmp_path / "told", labelled_npz, log_every="3")

    def in_step_9(*args, step, **rest):
        if step == 9:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*args, step=step, **rest)

    def in_validation(*args):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    before = signal.getsignal(signal.SIGTERM)
    for name, replaced, step in (("train_step", in_step_9, 10), ("validate", in_validation, 12)):
        with monkeypatch.context() as patch:
            patch.setattr(train.run, name, replaced)
            with pytest.raises(SystemExit) as left:
                run(config)
        assert left.value.code == 75
        assert f"SIGTERM: saved at step {step} of 16; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert run(config)["validation"] == whole["validation"]
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "told")]
    for part in ("model", "ema"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    rows = [
        [row | {"images_per_s": 0} for row in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "told")
    ]
    assert rows[0] == rows[1]


def test_an_error_that_sigterm_brought_about_is_an_interruption_and_any_other_stays():
    def fetch(terminated):
        stop.requested = 15 if terminated else 0
        raise RuntimeError("worker killed")

    with StopSignals() as stop:
        with pytest.raises(RuntimeError, match="worker killed"), stop.anywhere():
            fetch(terminated=False)
        with pytest.raises(Interrupted), stop.anywhere():
            fetch(terminated=True)


def test_a_state_that_was_cut_off_is_passed_over_for_the_one_before(tmp_path, labelled_npz, capsys):
    config = tiny_config(tmp_path / "run", labelled_npz, epochs="2")
    first = run(config)
    path, previous = tmp_path / "run" / "state.pt", tmp_path / "run" / "state.previous.pt"
    last = load_state(tmp_path / "run")
    assert last is not None
    content = path.read_bytes()
    damaged = bytearray(content)
    weights = next(value for value in last.model.values() if value.ndim == 2).numpy().tobytes()
    damaged[content.index(weights) + len(weights) // 2] ^= 255  # which torch.load would take as it is
    for broken in (content[: len(content) // 2], bytes(damaged)):
        path.write_bytes(broken)
        state = load_state(tmp_path / "run")
        assert state is not None
        assert (state.progress.step, last.progress.step) == (4, 8)
        assert "state.pt: cut off or damaged, passed over" in capsys.readouterr().err
    assert run(config)["validation"] == first["validation"]
    again = load_state(tmp_path / "run")
    assert again is not None
    assert all(torch.equal(value, again.model[name]) for name, value in last.model.items())
    for file in (path, previous):
        file.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"out: .* has no whole state to go on from"):
        load_state(tmp_path / "run")


def test_a_full_disk_names_the_step_and_keeps_the_last_good_state(tmp_path, labelled_npz, monkeypatch):
    config = tiny_config(tmp_path / "run", labelled_npz)

    def full(self, data):
        if self.name.startswith(".state.pt") and (tmp_path / "run" / "state.pt").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    write_bytes = Path.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"step 8: .*state\.pt: could not be written \(No space left on device\)"):
            run(config)
    state = load_state(tmp_path / "run")
    assert state is not None
    assert state.progress.step == 4
    assert run(config)["steps"] == 16


def test_a_run_stops_early_and_stays_stopped(tmp_path, labelled_npz, monkeypatch):
    scores = iter([0.5, 0.9, 0.3, 0.4, 0.8])
    monkeypatch.setattr(train.run, "validate", lambda *args: {"n": 32.0, "robust_accuracy": next(scores)})
    config = tiny_config(tmp_path / "run", labelled_npz, **{"epochs": "9", "validate.stop_after": "2"})
    summary = run(config)
    assert summary["steps"] == 4 * 4
    assert summary["validation"]["robust_accuracy"] == 0.9
    assert run(config) == summary


def test_catastrophic_overfitting_is_seen_told_and_answered_with_more_steps(
    tmp_path, labelled_npz, monkeypatch, capsys
):
    measured = iter([(0.6, 0.5), (0.9, 0.1), (0.6, 0.5), (0.6, 0.5), (0.6, 0.5)])
    used = []

    def fake(model, data, attack, config, together):
        training_attack, pgd = next(measured)
        return {"training_attack": training_attack, "pgd": pgd, "attack_steps": float(attack.steps)}

    def noted(*args, attack, **rest):
        used.append((attack.steps, attack.step_size))
        return train_step(*args, attack=attack, **rest)

    monkeypatch.setattr(train.run, "overfitting", fake)
    monkeypatch.setattr(train.run, "train_step", noted)
    fields = {"epochs": "2", "attack.steps": "1", "guard.every_steps": "2"}
    run(tiny_config(tmp_path / "run", labelled_npz, **fields))
    assert used == [(1, 0.1)] * 4 + [(2, 0.05)] * 4
    told = capsys.readouterr().err
    assert "catastrophic overfitting at step 4: 90.0% right under the training attack, 10.0% under PGD" in told
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "guard"]
    assert [(row["step"], row["attack_steps"]) for row in rows] == [(2, 1), (4, 1), (6, 2), (8, 2)]


def test_the_guard_compares_the_training_attack_with_pgd(labelled_npz, tmp_path):
    config = tiny_config(tmp_path, labelled_npz, **{"attack.eps": "3.0", "guard.images": "20"})
    data, model = load_dataset(str(labelled_npz), "train"), tiny_classifier()
    row = overfitting(model, data, PGD(3.0, 1e-6, 1), config)
    clean = (model(to_float(data.x_u8[:20])).argmax(1) == data.y[:20]).float().mean().item()
    assert row["training_attack"] == pytest.approx(clean)
    assert row["pgd"] <= clean
    assert row == overfitting(model, data, PGD(3.0, 1e-6, 1), config)


def test_a_run_can_start_from_a_checkpoint_of_other_classes(tmp_path, labelled_npz, classifier):
    other = RobustClassifier.from_description(replace(classifier.description, class_names=("a", "b")))
    path = tmp_path / "two.safetensors"
    save(other, path)
    fields = {"init": str(path), "arch": "null"}
    with pytest.raises(UserError, match=r"init: .*two.safetensors has 2 classes, the data has 3; pass --new-head"):
        run(tiny_config(tmp_path / "run", labelled_npz, **fields))
    with pytest.raises(UserError, match="init: no file nowhere"):
        run(tiny_config(tmp_path / "run", labelled_npz, **fields | {"init": "nowhere"}))
    assert not (tmp_path / "run").exists()
    config = tiny_config(tmp_path / "run", labelled_npz, **fields, new_head="true", epochs="1")
    model = make_model(config, ("0", "1", "2"), 16)
    assert model.description.arch == "preact_resnet10_w16"
    assert model.description.normalizer == classifier.description.normalizer
    assert model.head.out_features == 3
    for name, value in other.network.state_dict().items():
        if value.shape == model.network.state_dict()[name].shape:
            assert torch.equal(value, model.network.state_dict()[name]), name
    trained = load(run(config)["checkpoint"])
    assert trained.class_names == ("0", "1", "2")
    assert trained.description.normalizer == classifier.description.normalizer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"new_head": "true"}, "new_head: has nothing to replace without --init CHECKPOINT"),
        ({"guard.every_steps": "5", "data.validation": "0"}, "guard.every_steps: needs held-out images"),
        ({"validate.stop_after": "5", "data.validation": "0"}, "validate.stop_after: needs held-out images"),
        ({"attack.norm": "unconstrained", "attack.eps": ".inf"}, "attack.norm: unconstrained has no radius"),
        ({"attack.norm": "linf", "attack.eps": "8/255", "attack.step_size": "2"}, "attack.step_size: 2 is more than"),
        ({"attack.norm": "linf", "attack.eps": "{0: 0.01, 0.5: 8}"}, "attack.eps: 8 is outside"),
        ({"attack.eps": "{0.5: 1}"}, "attack.eps: .* does not say what holds from progress 0 on"),
        ({"energy.augment.crop_padding": "2"}, "energy.augment.crop_padding: 2 leaves black margins, by which real"),
        ({"energy.augment.rotation": "5"}, "energy.augment.rotation: 5 leaves black margins, by which real"),
        ({"energy.augment.mix": "mixup"}, "energy.augment.mix: mixup makes images that are not real; leave it out"),
        ({"energy.most_steps": "{0.5: 1}"}, "energy.most_steps: .* does not say what holds from progress 0 on"),
        ({"energy.auc": "{0.5: 1}"}, "energy.auc: .* does not say what holds from progress 0 on"),
        ({"energy.weight": "{0.5: 1}"}, "energy.weight: .* does not say what holds from progress 0 on"),
    ],
)
def test_fields_that_contradict_each_other_are_named(tmp_path, labelled_npz, fields, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path / "run", labelled_npz, **fields)


def test_a_finished_run_started_again_only_repeats_its_summary(tmp_path, labelled_npz):
    config = tiny_config(tmp_path / "run", labelled_npz, epochs="1")
    first = run(config)
    written = (tmp_path / "run" / "classifier.safetensors").stat().st_mtime_ns
    assert run(config) == first
    assert (tmp_path / "run" / "classifier.safetensors").stat().st_mtime_ns == written


def test_without_a_compiler_the_run_goes_on_uncompiled(tmp_path, labelled_npz, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    summary = run(tiny_config(tmp_path / "run", labelled_npz, epochs="1", compile="true"))
    assert summary["steps"] == 4
    assert "no C++ compiler here" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_run_agrees_with_the_plain_one(tmp_path, labelled_npz):
    rows = []
    for name in ("false", "true"):
        run(tiny_config(tmp_path / name, labelled_npz, epochs="1", compile=name))
        rows.append(read_metrics(tmp_path / name / "metrics.jsonl"))
    for plain, compiled in zip(*rows, strict=True):
        if plain["kind"] == "train":
            assert compiled["loss"] == pytest.approx(plain["loss"], abs=0.01)


def test_standard_training_is_eps_zero(tmp_path, labelled_npz):
    config = tiny_config(tmp_path / "run", labelled_npz, **{"epochs": "1", "attack.eps": "0"})
    assert attack_at(config.attack, 0.5).steps == 0
    summary = run(config)
    assert "robust_accuracy" not in summary["validation"]
    assert load(summary["checkpoint"]).description.threat_model is None


def test_bad_runs_are_refused_before_any_work(tmp_path, labelled_npz):
    with pytest.raises(UserError, match="batch_size: 100 is more than the 64 training images"):
        run(tiny_config(tmp_path / "a", labelled_npz, batch_size="100"))
    with pytest.raises(UserError, match=r"data\.validation: 96 leaves nothing of the 96 images"):
        run(tiny_config(tmp_path / "b", labelled_npz, **{"data.validation": "96"}))
    with pytest.raises(UserError, match="no such file"):
        run(tiny_config(tmp_path / "c", tmp_path / "nowhere.npz"))
    assert not any((tmp_path / name).exists() for name in "abc")
    run(tiny_config(tmp_path / "run", labelled_npz, epochs="1"))
    with pytest.raises(UserError, match=r"holds a run with another seed \(0 there, 1 now\)"):
        run(tiny_config(tmp_path / "run", labelled_npz, epochs="1", seed="1"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, labelled_npz):
    with pytest.raises(UserError, match=r"step \d+: the (loss|gradient) became (nan|inf); the last good state is kept"):
        run(tiny_config(tmp_path / "run", labelled_npz, **{"optimizer.lr": "1e30"}))


def test_each_epoch_visits_every_image_at_most_once_in_a_new_order(labelled_npz):
    loader = loader_of(
        "resident", load_dataset(str(labelled_npz), "train"), batch_size=20, seed=3, device=torch.device("cpu")
    )
    assert loader.steps_per_epoch == 4
    epochs = [torch.cat([loader.batch(4 * epoch + i)[0] for i in range(4)]).flatten(1) for epoch in range(2)]
    assert all(len(epoch.unique(dim=0)) == 80 for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(loader.batch(2)[0].flatten(1), epochs[0][40:60])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_is_a_function_of_its_generator():
    x = torch.rand(8, 3, 16, 16)
    config = AugmentConfig(crop_padding=2, flip=True, jitter=0.25, rotation=2.0)
    first = augment(x, config, seeded())
    assert torch.equal(first, augment(x, config, seeded()))
    assert not torch.equal(first, augment(x, config, seeded(1)))
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(augment(x, AugmentConfig(crop_padding=0, flip=False), seeded()), x)


def test_a_crop_is_the_image_moved_with_zeros_moving_in():
    x = torch.rand(200, 3, 6, 6) + 0.1
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    windows = [padded[:, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    cropped = random_crop(x, 1, seeded())
    which = torch.stack([(cropped == window).flatten(1).all(1) for window in windows])
    assert (which.sum(0) == 1).all()
    assert (which.sum(1) > 5).all()


def test_jitter_and_rotation_move_as_far_as_they_may():
    grey = torch.full((500, 3, 4, 4), 0.4)
    levels = jitter(grey, 0.25, seeded())[:, 0, 0, 0]
    assert 0.3 - 1e-6 <= levels.min() < 0.32
    assert 0.48 < levels.max() <= 0.5 + 1e-6
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(rotate(x, 1e-6, seeded()), x, rtol=0, atol=1e-4)
    assert (rotate(x, 45.0, seeded()) - x).abs().max() > 0.1


def test_schedules():
    cycle = one_cycle(0.2)
    assert [cycle(p) for p in (0.0, 0.1, 0.2)] == [0.0, 0.5, 1.0]
    assert cycle(0.6) == pytest.approx(0.5)
    assert cycle(1.0) == pytest.approx(0.0)
    decay = step_decay(50, 150)
    assert [decay(epoch / 150) for epoch in (0, 49, 50, 99, 100, 149)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [at({0.0: 1, 0.7: 2}, p) for p in (0.0, 0.69, 0.7, 1.0)] == [1, 1, 2, 2]
    assert at(7, 0.3) == 7


def test_ema_trails_and_with_decay_zero_equals():
    model = tiny_classifier()
    trailing, equal = EMA(model, 0.9), EMA(model, 0.0)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    for ema in (trailing, equal):
        ema.update(model, step=10_000)
    torch.testing.assert_close(trailing.model.head.weight, start + 0.1)
    assert torch.equal(equal.model.head.weight, model.head.weight)


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    with MetricsLog(tmp_path, from_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, "train", {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ki')
    with MetricsLog(tmp_path, from_step=2) as log:
        log.write(3, "train", {"loss": 30.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0]


def test_folder_data_takes_its_class_names(tmp_path, labelled_npz):
    from PIL import Image

    with np.load(labelled_npz) as arrays:
        for i, (pixels, label) in enumerate(zip(arrays["arr_0"], arrays["arr_1"], strict=True)):
            folder = tmp_path / "set" / "train" / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    data = load_dataset(str(tmp_path / "set"), "train")
    assert data.class_names == ("class0", "class1", "class2")
    assert len(data) == 96
    renamed = load_dataset(str(labelled_npz), "train", class_names=("red", "green", "blue"))
    assert renamed.class_names == ("red", "green", "blue")
    with pytest.raises(UserError, match="2 names for the 3 classes"):
        load_dataset(str(labelled_npz), "train", class_names=("red", "green"))


LITTLE = r"the whole run has {} steps \({} images in batches of {}, {} epochs\); raise --epochs or lower --batch-size"
MOST = r"data.validation holds out {} of the 96 images, so that {} train; lower it"


@pytest.mark.parametrize(
    ("validation", "batch_size", "epochs", "expected"),
    [
        (64, 32, 1, [MOST.format(64, 32), LITTLE.format(1, 32, 32, 1)]),
        (64, 8, 5, [MOST.format(64, 32)]),
        (49, 2, 1, [MOST.format(49, 47)]),
        (48, 2, 1, []),
        (16, 4, 1, []),
        (16, 80, 19, [LITTLE.format(19, 80, 80, 19)]),
        (16, 80, 20, []),
        (0, 96, 2, [LITTLE.format(2, 96, 96, 2)]),
    ],
)
def test_a_run_that_hardly_trains_says_so_in_one_line(
    tmp_path, labelled_npz, capsys, validation, batch_size, epochs, expected
):
    fields = {"data.validation": str(validation), "batch_size": str(batch_size), "epochs": str(epochs)}
    config = tiny_config(tmp_path / "run", labelled_npz, **fields, **{"attack.eps": "0", "data.image_size": "8"})
    summary = run(config)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == bool(expected)
    assert len(summary["warnings"]) == len(expected)
    for pattern, warning in zip(expected, summary["warnings"], strict=True):
        assert re.fullmatch(pattern, warning), warning
        assert warning in lines[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["warnings"] == summary["warnings"]
    assert run(config) == summary
    assert "warning: " not in capsys.readouterr().err
