"""Training on small images first: what a step sees, and that the attack shrinks with it."""

import pytest
import torch

from robust_models import PGD, UserError, load
from tests.test_train import dying_at, tiny_config
from tests.test_train_energy import recipe as energy_recipe
from tests.tiny import SIZE
from train.loop import train
from train.report import read_metrics
from train.state import load_state
from train.step import at_side


@pytest.mark.parametrize(("norm", "shrunk"), [("l2", 0.5), ("linf", 1.0), ("l1", 0.25), ("l1.5", 0.5 ** (4 / 3))])
def test_the_attack_shrinks_as_the_norm_of_a_flat_change(norm, shrunk):
    x = torch.rand(2, 3, 16, 16)
    small, attack = at_side(x, PGD(0.02, 0.01, 3, norm=norm), 8)
    assert small.shape == (2, 3, 8, 8)
    assert 0 <= small.min() < small.max() <= 1
    assert (attack.eps, attack.step_size, attack.steps) == pytest.approx((0.02 * shrunk, 0.01 * shrunk, 3))


def test_resizing_keeps_flat_images_and_averages_detail():
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(at_side(flat, PGD(1.0, 0.1, 1), 8)[0], torch.full((1, 3, 8, 8), 0.3))
    checks = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float().expand(1, 3, 16, 16)
    torch.testing.assert_close(at_side(checks, PGD(1.0, 0.1, 1), 8)[0][..., 2:6, 2:6], torch.full((1, 3, 4, 4), 0.5))


def test_images_of_that_side_are_left_as_they_are():
    x, attack = torch.rand(2, 3, 16, 16), PGD(0.5, 0.1, 1)
    assert at_side(x, attack, 16) == (x, attack)


def test_steps_see_small_images_first_and_evaluations_whole_ones(tmp_path, labelled_npz, monkeypatch):
    from train import step as module

    seen = []
    real = module.at_side
    monkeypatch.setattr(module, "at_side", lambda *given: seen.append(given[2]) or real(*given))
    summary = train(tiny_config(tmp_path / "run", labelled_npz, resize="{0: 8, 0.5: 16}"))
    assert summary is not None
    assert seen == [8] * 8 + [16] * 8
    model = load(summary["checkpoint"], quiet=True)
    assert model.image_size == SIZE
    assert {float(key): value for key, value in model.description.recipe["resize"].items()} == {0: 8, 0.5: 16}
    assert all(row["loss"] > 0 for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train")


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, labelled_npz):
    train(tiny_config(tmp_path / "whole", labelled_npz, resize="{0: 8, 0.5: 16}"))
    with dying_at(5):
        train(tiny_config(tmp_path / "parts", labelled_npz, resize="{0: 8, 0.5: 16}"))
    train(tiny_config(tmp_path / "parts", labelled_npz, resize="{0: 8, 0.5: 16}"))
    whole, parts = load_state(tmp_path / "whole"), load_state(tmp_path / "parts")
    assert whole is not None
    assert parts is not None
    assert all(torch.equal(value, parts.model[name]) for name, value in whole.model.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "{0.5: 16}"}, r"resize: .* does not say what holds from progress 0 on"),
        ({"resize": "0"}, r"resize"),
        ({"resize": "8", "smoothing.sigma": "0.25"}, r"resize: does not go with noise"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, labelled_npz, fields, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path / "run", labelled_npz, **fields)


def test_images_that_are_made_have_their_own_size(tmp_path):
    with pytest.raises(UserError, match=r"resize: does not go with objective.name=energy"):
        energy_recipe(tmp_path, tmp_path / "run", resize=8)


def test_the_length_of_a_run_that_changes_the_side_is_fixed(tmp_path, labelled_npz):
    train(tiny_config(tmp_path / "run", labelled_npz, resize="{0: 8, 0.5: 16}", **{"optimizer.schedule": "constant"}))
    longer = {"epochs": "5", "optimizer.schedule": "constant", "resize": "{0: 8, 0.5: 16}"}
    with pytest.raises(UserError, match=r"resize is spread over the whole run"):
        train(tiny_config(tmp_path / "run", labelled_npz, **longer))
