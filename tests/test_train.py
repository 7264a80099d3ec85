import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train.run
from robust_models import UserError, load
from robust_models.datasets import load_dataset
from robust_models.runtime.config import resolve
from robust_models.runtime.run_folder import MetricsLog, read_metrics
from tests.tiny import tiny_classifier
from train.augment import augment, jitter, random_crop, rotate
from train.config import AugmentConfig, TrainConfig
from train.ema import EMA
from train.loaders.resident import ResidentLoader
from train.loop import train as run
from train.schedule import at, one_cycle, step_decay
from train.step import attack_at, train_step


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
    assert len(events.Scalars("train/loss")) == 16
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
    loader = ResidentLoader(load_dataset(str(labelled_npz), "train"), batch_size=20, seed=3, device=torch.device("cpu"))
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
