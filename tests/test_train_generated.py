"""Training on real images and a generator's together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robust_models import UserError
from robust_models.datasets import load_dataset
from robust_models.runtime.config import resolve
from tests.test_train import tiny_config
from tests.tiny import SIZE, tiny_pixels
from train.config import TrainConfig
from train.loop import train
from train.run import Run
from train.start import open_generated


def made(path: Path, n: int = 40, *, names: list[str] | None = None, size: int = SIZE, labelled: bool = True) -> Path:
    """Samples of a generator; their first pixel is 255, which no real image of `tiny_pixels` has."""
    pixels, labels = tiny_pixels(n, seed=9)
    pixels = pixels.repeat(size // SIZE, axis=1).repeat(size // SIZE, axis=2)
    pixels[:, 0, 0] = 255
    arrays = {"arr_0": pixels} | ({"arr_1": labels} if labelled else {})
    np.savez(path, **arrays, **({"class_names": np.array(names)} if names else {}))
    return path


def is_made(x_u8: torch.Tensor) -> torch.Tensor:
    return (x_u8[:, :, 0, 0] == 255).all(dim=1)


def config(tmp_path: Path, data: Path, **fields) -> TrainConfig:
    about = {"path": str(data), "validation": 32, "generated": str(made(tmp_path / "made.npz")), **fields}
    return resolve(TrainConfig, {"data": about, "out": str(tmp_path / "run"), **BASE}, {})


BASE = {
    "arch": "preact_resnet10_w8",
    "epochs": 2,
    "batch_size": 16,
    "device": "cpu",
    "log_every": 2,
    "augment": {"crop_padding": 1},
    "attack": {"eps": 0.25, "step_size": 0.1, "steps": 1},
    "optimizer": {"lr": 0.1},
    "validate": {"steps": 1},
}


@pytest.mark.parametrize(("share", "expected"), [(0.25, 4), (0.5, 8), (0.7, 11)])
def test_a_share_of_every_batch_is_generated_and_the_held_out_images_are_real(tmp_path, labelled_npz, share, expected):
    plain = Run(tiny_config(tmp_path / "plain", labelled_npz))
    run = Run(config(tmp_path, labelled_npz, generated_share=share))
    assert run.loader.steps_per_epoch == plain.loader.steps_per_epoch
    for step in range(5):
        x_u8, y = run.loader.batch(step)
        assert len(y) == 16
        assert is_made(x_u8).sum() == expected
    assert not is_made(run.held_out.x_u8).any()
    assert torch.equal(run.held_out.x_u8, plain.held_out.x_u8)


def test_a_run_with_them_ends_and_says_so_in_its_file(tmp_path, labelled_npz):
    from robust_models import load

    summary = train(config(tmp_path, labelled_npz))
    assert summary is not None
    recipe = load(summary["checkpoint"]).description.recipe
    assert recipe["data"]["generated"] == str(tmp_path / "made.npz")
    assert recipe["data"]["generated_share"] == 0.7


def test_their_classes_are_found_by_name(tmp_path, labelled_npz):
    real = load_dataset(str(labelled_npz), "train")
    other = list(reversed(real.class_names))
    found = open_generated(made(tmp_path / "named.npz", names=other), real, "data.generated")
    plain = open_generated(made(tmp_path / "plain.npz"), real, "data.generated")
    assert torch.equal(found.y, len(other) - 1 - plain.y)
    assert found.class_names == real.class_names


def test_they_are_brought_to_the_size_of_the_real_ones(tmp_path, labelled_npz):
    real = load_dataset(str(labelled_npz), "train")
    found = open_generated(made(tmp_path / "large.npz", size=2 * SIZE), real, "data.generated")
    assert found.x_u8.shape[-2:] == (SIZE, SIZE)


def test_the_first_images_alone_train_and_the_same_are_held_out(tmp_path, labelled_npz):
    run, whole = (
        Run(tiny_config(tmp_path / name, labelled_npz, **{"data.limit": limit} if limit else {}))
        for name, limit in (("few", "20"), ("all", None))
    )
    assert run.loader.order.count == 20
    assert torch.equal(run.held_out.x_u8, whole.held_out.x_u8)


BAD = {
    "no labels": ({"generated": {"labelled": False}}, "data.generated: "),
    "strange names": ({"generated": {"names": ["a", "b", "c"]}}, "data.generated: "),
    "nothing real": (
        {"generated_share": 0.99},
        "data.generated_share: 0.99 of a batch of 16 on 1 ranks leaves no real",
    ),
    "nothing made": ({"generated_share": 0.01}, "data.generated_share: 0.01 of a batch of 16 on 1 ranks leaves no gen"),
    "too few": ({"generated": {"n": 3}}, "batch_size: 11 is more than the 3 training images of"),
    "limit": ({"limit": 1000}, "data.limit: 1000 is more than the "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_mixed_in_is_one_line(tmp_path, labelled_npz, case):
    fields, message = BAD[case]
    settings = dict(fields)
    about = settings.pop("generated", None)
    asked = config(tmp_path, labelled_npz, **settings)
    if about is not None:
        made(tmp_path / "made.npz", **about)
    with pytest.raises(UserError) as caught:
        Run(asked)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_settings_that_go_nowhere_are_refused(tmp_path, labelled_npz):
    with pytest.raises(UserError, match=r"data.generated_share: 0.5 is for --data.generated, which is not given"):
        tiny_config(tmp_path / "run", labelled_npz, **{"data.generated_share": "0.5"})
    with pytest.raises(UserError, match=r"data.generated: does not go with objective.name=energy; leave it out"):
        tiny_config(
            tmp_path / "run",
            labelled_npz,
            **{"objective.name": "energy", "init": "cifar10-l2-small", "arch": "null", "data.generated": "made.npz"},
        )
