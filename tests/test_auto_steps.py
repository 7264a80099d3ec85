"""--steps auto: the fewest steps that are no worse than seven, on made-up features and from the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from refine.auto_judging import Judging, Verdict
from refine.auto_steps import Fewest, choose_steps, format_fewest
from refine.cli import main
from refine.method import STEPS
from tests.test_auto_eps import place  # noqa: F401  (a fixture)
from tests.tiny import SIZE

REFERENCE = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))


class Features:
    """A judging whose images after `steps` steps lie offset(steps) from where they should."""

    chosen, choosing, judges = range(len(IMAGES)), REFERENCE, (type("Judge", (), {"name": "a judge"}),)

    def __init__(self, offset):
        self.offset = offset
        self.tried: list[int] = []

    def choosing_images(self, refiner, targets):
        self.tried.append(refiner.attack)
        return IMAGES + self.offset(refiner.attack)

    def see(self, x):
        return x, None


class Refiner:
    attack = STEPS


@pytest.fixture(autouse=True)
def _replaced(monkeypatch):
    """The stand-in for a refiner has its number of steps in place of an attack."""

    def replaced(refiner, attack):
        found = Refiner()
        found.attack = attack
        return found

    monkeypatch.setattr("refine.auto_steps.replace", lambda one, **given: replaced(one, **given))


@pytest.mark.parametrize("enough", [1, 2, 3, 6, 7])
def test_the_fewest_steps_that_reach_the_distance_are_taken_and_no_more_are_tried(enough):
    judging = Features(lambda steps: 0.0 if steps >= enough else 0.4 * (enough - steps))
    found = choose_steps(judging, Refiner(), lambda steps: steps, None)
    assert found.steps == enough
    assert judging.tried == [STEPS, *range(1, min(enough, STEPS - 1) + 1)]
    assert all(verdict.is_loss == (steps < enough) for steps, verdict in found.tried)


def test_steps_that_are_better_than_seven_are_taken():
    found = choose_steps(Features(lambda steps: 0.1 * steps), Refiner(), lambda steps: steps, None)
    assert found.steps == 1
    assert found.tried[0][1].is_gain


def test_the_table_shows_what_was_tried_beside_seven():
    worse = Verdict("kid", 0.5, 0.7, (0.1, 0.3), 12, 12, 64, "a judge")
    enough = replace(worse, distance_after=0.51, difference_interval=(-0.01, 0.03))
    lines = format_fewest(Fewest(((1, worse), (2, enough)))).splitlines()
    assert [line.split()[0] for line in lines] == ["steps", "7", "1", "2"]
    assert lines[1].split()[1] == "0.5"
    assert [line.split()[0] for line in lines if line.endswith("<")] == ["2"]
    assert Fewest(((1, worse),) * 6).steps == STEPS


def command(place, *more):  # noqa: F811
    words = ["--ckpt", place["checkpoint"], "--input", place["images"], "--out", place["out"], "--device", "cpu"]
    words += ["--reference", place["real"], "--judge", place["judge"], "--steps", "auto", "--auto-images", 8, *more]
    return [str(word) for word in words]


@pytest.fixture
def _real(monkeypatch):
    monkeypatch.setattr("refine.auto_steps.replace", replace)


@pytest.mark.usefixtures("_real")
def test_the_result_is_that_of_the_steps_given(place, capsys):  # noqa: F811
    assert main(command(place, "--eps", 1, "--json", "--auto-accept", "best")) == 0
    summary = json.loads(capsys.readouterr().out)
    search = summary["steps_search"]
    assert summary["steps"] == search["steps_taken"] == search["steps"] == search["tried"][-1]["steps"] < STEPS
    assert summary["step_size"] == pytest.approx(1.5 / summary["steps"])
    assert [found["steps"] for found in search["tried"]] == [*range(1, search["steps"] + 1)]
    assert (search["n_held_apart"], search["n_reference"]) == (8, 12)
    low, high = search["difference_interval"]
    assert low <= search["distance_after"] - search["distance_before"] <= high
    assert "eps_search" not in summary
    chosen = np.load(place["out"])["arr_0"]
    assert chosen.shape == (24, SIZE, SIZE, 3)
    words = ["--eps", "1", "--overwrite", "--json"]
    given = [word if word != "auto" else str(search["steps"]) for word in command(place, *words)]
    assert main(given) == 0
    assert np.array_equal(np.load(place["out"])["arr_0"], chosen)
    record = json.loads(place["out"].with_name("out.npz.run.json").read_text())
    assert "steps_search" not in record["summary"]


@pytest.mark.usefixtures("_real")
def test_eps_is_found_first_and_then_the_steps_at_that_eps(place, capsys, monkeypatch):  # noqa: F811
    seen = []

    def noted(judging, refiner, attack_at, targets):
        seen.extend((attack_at(STEPS), attack_at(2)))
        return choose_steps(judging, refiner, attack_at, targets)

    monkeypatch.setattr("refine.auto_steps.choose_steps", noted)
    assert main(command(place, "--eps", "auto", "--json", "--auto-accept", "best")) == 0
    summary = json.loads(capsys.readouterr().out)
    eps = summary["eps_search"]["eps_taken"]
    assert eps > 0
    assert [(attack.eps, attack.steps) for attack in seen] == [(eps, STEPS), (eps, 2)]
    assert [attack.step_size for attack in seen] == pytest.approx([1.5 * eps / STEPS, 1.5 * eps / 2])
    assert (summary["eps"], summary["steps"]) == (eps, summary["steps_search"]["steps"])


@pytest.mark.usefixtures("_real")
def test_where_others_find_fewer_steps_worse_seven_are_taken(place, capsys, monkeypatch):  # noqa: F811
    alike = Verdict("frechet", 8.0, 8.1, (-0.1, 0.3), 12, 12, 64, "a judge")
    worse = replace(alike, difference_interval=(0.05, 0.2), judge="another")
    monkeypatch.setattr("refine.auto_steps.choose_steps", lambda *_: Fewest(((1, worse), (2, alike))))
    monkeypatch.setattr(Judging, "verdicts", lambda *_, **__: [alike, worse])
    assert main(command(place, "--eps", 1)) == 0
    printed = capsys.readouterr().out
    assert "against 12 real ones, 2 steps after 7:" in printed
    assert "of a judge: Frechet distance 8.0 -> 8.1 (difference -0.1 to +0.3 in 95 % of the resamples): no" in printed
    assert "2 steps are significantly worse there: 7 are taken" in printed
    assert ", 7 steps" in printed
    monkeypatch.setattr(Judging, "verdicts", lambda *_, **__: [alike])
    assert main(command(place, "--eps", 1, "--overwrite")) == 0
    assert ", 2 steps" in capsys.readouterr().out
    monkeypatch.setattr("refine.auto_steps.choose_steps", lambda *_: Fewest(tuple((k, worse) for k in range(1, 7))))
    assert main(command(place, "--eps", 1, "--overwrite")) == 0
    assert "fewer than 7 steps are significantly worse" in (printed := capsys.readouterr().out)
    assert ", 7 steps" in printed


@pytest.mark.usefixtures("_real")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "1", "--step-size", "0.5"], "step_size: 0.5, but each number of --steps auto has its own"),
        (["--eps", "1", "--reference", "null"], "steps: auto needs --reference REAL_IMAGES"),
        (["--eps", "1", "--steps", "some"], "error: steps: input should be a valid integer"),
        (["--eps", "1", "--steps", "0"], "error: steps: input should be greater than or equal to 1; got 0"),
    ],
)
def test_what_does_not_fit_is_one_line(place, capsys, words, message):  # noqa: F811
    assert main(command(place, *words)) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not place["out"].exists()
