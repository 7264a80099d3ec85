"""Training by several ranks: what one process makes, from the same batches."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robust_models import PGD, Description, RobustClassifier, UserError, save
from robust_models.runtime.config import resolve
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.signals import StopSignals
from tests.test_distributed import finish, start
from tests.tiny import SIZE, tiny_classifier, tiny_pixels
from train.augment import augment
from train.batch_norm import share_batch_norms
from train.config import AugmentConfig, TrainConfig
from train.loop import train
from train.objectives import CrossEntropy, Trades
from train.parallel import part, starts
from train.report import read_metrics
from train.state import load_state
from train.validation import Together, accuracy

FIRST, SECOND = Ranks(0, 2), Ranks(1, 2)
VARIANTS = {
    "pgd": {},
    "trades": {"objective": {"name": "trades", "awp": 0.005}, "augment": {"crop_padding": 1, "mix": "cutmix"}},
    "generated": {
        "data": {"path": "ROOT/labelled.npz", "validation": 47, "generated": "ROOT/made.npz", "generated_share": 0.5}
    },
    "refining": {
        "validate": {
            "steps": 2,
            "refine": {"images": "ROOT/made.npz", "judge": "classifier:ROOT/start.safetensors", "limit": 25},
        },
    },
    "energy": {
        "objective": {"name": "energy"},
        "arch": None,
        "activation": None,
        "init": "ROOT/start.safetensors",
        "energy": {
            "start": "noise", "judge": "classifier:ROOT/start.safetensors", "window": 2, "auc": 0.0, "images": 20,
        },
        "optimizer": {"lr": 0.005, "schedule": "constant"},
    },
}  # fmt: skip


def recipe(root: Path, name: str, **changed) -> TrainConfig:
    """Six steps of a tiny network on 48 images; smooth, as where ReLU bends rounding grows to something else."""
    values = {
        "out": str(root / name),
        "arch": "preact_resnet10_w16",
        "activation": "silu",
        "epochs": 2,
        "batch_size": 16,
        "ema_decay": 0.5,
        "log_every": 2,
        "device": "cpu",
        "precision": "fp32",
        "data": {"path": str(root / "labelled.npz"), "validation": 47},
        "augment": {"crop_padding": 1, "jitter": 0.25, "rotation": 2.0},
        "attack": {"eps": 0.25, "step_size": 0.1, "steps": 2, "random_start": True},
        "optimizer": {"lr": 0.02},
        "guard": {"every_steps": 3, "images": 32},
        "validate": {"steps": 2},
    }
    changed = json.loads(json.dumps(changed).replace("ROOT", str(root)))
    return resolve(TrainConfig, {**values, **changed}, {})


RANK = """
import os, signal, sys
from pathlib import Path
import torch
import train.run
from robust_models.errors import UserError
from robust_models.runtime.distributed import join
from tests import test_train_ranks as here
from train.loop import train as run
from train.step import train_step

root, rank = Path(sys.argv[1]), int(os.environ["RANK"])
with join():
    here.check_batch_norm(rank)
for name, changed in here.VARIANTS.items():
    summary = run(here.recipe(root, f"two_{name}", **changed))
    print(name, summary and summary["steps"])

def told(*args, step, **rest):
    if (step, rank) == (2, 1):
        signal.raise_signal(signal.SIGTERM)
    return train_step(*args, step=step, **rest)

train.run.train_step = told
for _ in range(2):
    try:
        print("resumed", bool(run(here.recipe(root, "told"))))
    except SystemExit as left:
        print("left", left.code)
    train.run.train_step = train_step

class Full:
    def __init__(self, *args): raise UserError("step 3: disk full")

train.run.save_state = Full
for changed in ({"batch_size": 15}, {}):
    try:
        run(here.recipe(root, "bad", **changed))
    except (UserError, SystemExit) as error:
        print(type(error).__name__, error)
"""


def check_batch_norm(rank: int) -> None:
    """On this rank: outputs, gradients and statistics of its half equal those of a batch norm on the whole batch."""
    torch.manual_seed(0)
    model = tiny_classifier()
    norm = nn.BatchNorm2d(5).double()
    nn.init.normal_(norm.weight)
    model.network, other = nn.Sequential(norm), nn.BatchNorm2d(5).double()
    other.load_state_dict(norm.state_dict())
    share_batch_norms(model)
    assert type(norm).__name__ == "SharedBatchNorm2d"
    x, upstream = 3 + torch.randn(2, 8, 5, 4, 4, dtype=torch.float64)
    whole, own = x.clone().requires_grad_(), x.chunk(2)[rank].clone().requires_grad_()
    y, y_own = other(whole), norm(own)
    (y * upstream).sum().backward()
    (y_own * upstream.chunk(2)[rank]).sum().backward()
    torch.testing.assert_close(y_own, y.chunk(2)[rank])
    assert whole.grad is not None
    torch.testing.assert_close(own.grad, whole.grad.chunk(2)[rank])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(norm, name), getattr(other, name))
    for name in ("weight", "bias"):
        gradient = getattr(norm, name).grad
        torch.distributed.all_reduce(gradient)
        torch.testing.assert_close(gradient, getattr(other, name).grad)


def state_of(folder: Path):
    state = load_state(folder)
    assert state is not None
    return state


def numbers(row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("kind", "images_per_s")}


def test_two_ranks_train_what_one_process_trains_and_stop_and_fail_together(tmp_path):
    pixels, labels = tiny_pixels(95)
    np.savez(tmp_path / "labelled.npz", arr_0=pixels, arr_1=labels)
    pixels, labels = tiny_pixels(30, seed=1)
    np.savez(tmp_path / "made.npz", arr_0=pixels, arr_1=labels)
    description = Description("preact_resnet10_w16", ("0", "1", "2"), SIZE, activation="silu")
    save(RobustClassifier.from_description(description), tmp_path / "start.safetensors")
    ended = finish(start("-c", RANK, tmp_path))
    assert [status for status, _, _ in ended] == [0, 0], ended
    first, second = (out.splitlines() for _, out, _ in ended)
    assert first[:7] == [*(f"{name} 6" for name in VARIANTS), "left 75", "resumed True"]
    assert second[:7] == [*(f"{name} None" for name in VARIANTS), "left 75", "resumed False"]
    assert "SIGTERM: saved at step 3" in ended[0][2]
    assert "SIGTERM" not in ended[1][2]
    assert first[7] == "UserError batch_size: 15 cannot be shared by 2 processes; give a multiple of 2"
    assert first[8] == "UserError step 3: step 3: disk full"
    assert second[7:] == ["PeerFailed 2", "PeerFailed 2"]

    for name, changed in VARIANTS.items():
        train(recipe(tmp_path, f"one_{name}", **changed))
        one, two = (state_of(tmp_path / f"{count}_{name}") for count in ("one", "two"))
        for part_name in ("model", "ema"):
            for key, value in getattr(one, part_name).items():
                torch.testing.assert_close(
                    getattr(two, part_name)[key], value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}"
                )
        rows = [read_metrics(tmp_path / f"{count}_{name}" / "metrics.jsonl") for count in ("one", "two")]
        assert [(row["step"], row["kind"]) for row in rows[0]] == [(row["step"], row["kind"]) for row in rows[1]]
        for ours, theirs in zip(*rows, strict=True):
            assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-4)
    whole, told = (state_of(tmp_path / name) for name in ("two_pgd", "told"))
    assert all(torch.equal(value, told.model[key]) for key, value in whole.model.items())
    assert whole.progress.best_scores == told.progress.best_scores


def test_each_rank_draws_for_the_whole_batch_and_takes_its_part():
    x = torch.rand(8, 3, 16, 16)
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    config = AugmentConfig(crop_padding=2, jitter=0.25, rotation=5.0)
    halves = [augment(part(x, ranks), config, seeded(), ranks) for ranks in (FIRST, SECOND)]
    torch.testing.assert_close(torch.cat(halves), augment(x, config, seeded()))
    attack = PGD(0.5, 0.1, 2, random_start=True)
    together = starts(attack, 8, x, seeded(), Ranks())
    assert together is not None
    halves = [starts(attack, 8, part(x, ranks), seeded(), ranks) for ranks in (FIRST, SECOND)]
    assert torch.equal(torch.cat([half for half in halves if half is not None]), together)
    assert starts(PGD(0.5, 0.1, 2), 8, x, seeded(), FIRST) is None


@pytest.mark.parametrize("objective", [CrossEntropy(), Trades()])
@pytest.mark.parametrize("random_start", [False, True])
def test_an_image_is_attacked_alike_by_however_many_ranks(classifier, objective, random_start):
    x, y = torch.rand(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    attack = PGD(0.5, 0.2, 2, random_start=random_start)
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    halves = [
        objective.attacked(classifier, attack, part(x, ranks), part(y, ranks), seeded(), ranks)
        for ranks in (FIRST, SECOND)
    ]
    together = objective.attacked(classifier, attack, x, y, seeded())
    # The divergence is nearly flat where TRADES starts, so that its steps there are rounding, magnified.
    torch.testing.assert_close(torch.cat(halves), together, rtol=0, atol=2e-3)
    assert (together - x).abs().max() > 0.02


def test_ranks_add_up_to_the_accuracy_of_one(classifier, tmp_path, labelled_npz, monkeypatch):
    from robust_models.datasets import load_dataset

    counted = []
    monkeypatch.setattr(Ranks, "total", lambda self, number: counted.append(number) or number)
    data, config, attack = load_dataset(str(labelled_npz), "train")[:7], recipe(tmp_path, "x"), PGD(0.5, 0.2, 2)
    called = []
    monkeypatch.setattr("train.validation.BATCH", 4)  # the second batch has fewer images than there are ranks
    alone = accuracy(classifier, data, attack, config, 0)
    for rank in range(4):
        accuracy(classifier, data, attack, config, 0, Together(Ranks(rank, 4), lambda: called.append(None)))
    assert sum(counted[1:]) == counted[0] == round(7 * alone)
    assert len(called) == 4 * 2


def test_norms_that_ranks_cannot_share_are_named():
    model = RobustClassifier(nn.Sequential(nn.BatchNorm1d(3)), Description("odd", ("a", "b"), SIZE))
    with pytest.raises(UserError, match=r"arch: ranks cannot share the statistics of 0, a BatchNorm1d, in odd"):
        share_batch_norms(model)


def test_ranks_stop_at_the_signal_of_any_when_they_next_check(monkeypatch):
    asked = []
    monkeypatch.setattr(Ranks, "total", lambda self, number: asked.append(number) or 1)
    with StopSignals(FIRST) as stop:
        with stop.anywhere():
            os.kill(os.getpid(), 15)
        assert asked == []
        with pytest.raises(SystemExit) as left:
            stop.check()
    assert left.value.code == 75
    assert asked == [True]
