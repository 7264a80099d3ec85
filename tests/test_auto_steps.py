"""--steps auto: the fewest steps that keep the gain of seven, on made-up features and from the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from refine.auto_judging import Judging, Verdict
from refine.auto_steps import LOSS, Fewest, choose_steps, format_fewest, keeps, margin
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
        if refiner is None:
            return IMAGES + 3
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
def test_the_fewest_steps_that_keep_the_gain_are_taken_and_no_more_are_tried(enough):
    judging = Features(lambda steps: 0.0 if steps >= enough else 1.5 + 0.1 * (enough - steps))
    found = choose_steps(judging, Refiner(), lambda steps: steps, None)
    assert found.steps == enough
    assert judging.tried == [STEPS, *range(1, min(enough, STEPS - 1) + 1)]
    assert all(keeps(found.gain, verdict) == (steps >= enough) for steps, verdict in found.tried)


@pytest.mark.parametrize(("share", "steps"), [(0.05, 1), (0.3, STEPS)])
def test_a_twentieth_of_the_gain_may_be_lost_and_three_tenths_not(share, steps):
    """The squared distance of shifted sets is that of their means: 8 features, each off by 3 without steps."""
    judging = Features(lambda taken: 0.0 if taken == STEPS else 3 * share**0.5)
    found = choose_steps(judging, Refiner(), lambda taken: taken, None)
    assert found.gain.distance_before - found.gain.distance_after == pytest.approx(8 * 3**2, rel=0.1)
    assert margin(found.gain) == pytest.approx(LOSS * 8 * 3**2, rel=0.1)
    assert found.steps == steps


def test_steps_that_are_better_than_seven_are_taken_and_without_a_gain_no_loss_is_allowed():
    found = choose_steps(Features(lambda steps: 0.1 * steps), Refiner(), lambda steps: steps, None)
    assert found.steps == 1
    assert found.tried[0][1].is_gain
    worse_than_raw = choose_steps(Features(lambda steps: 4 - 0.1 * steps), Refiner(), lambda steps: steps, None)
    assert margin(worse_than_raw.gain) == 0
    assert worse_than_raw.steps == STEPS


GAIN = Verdict("kid", 2.5, 0.5, (-2.2, -1.8), 12, 12, 64, "a judge")
WORSE = Verdict("kid", 0.5, 0.8, (0.1, 0.5), 12, 12, 64, "another")
ALIKE = replace(WORSE, distance_after=0.51, difference_interval=(-0.1, 0.12), judge="a judge")


def test_the_table_shows_what_was_tried_beside_none_and_seven():
    lines = format_fewest(Fewest(GAIN, ((1, WORSE), (2, ALIKE)))).splitlines()
    assert [line.split()[0] for line in lines] == ["steps", "0", "7", "1", "2"]
    assert [line.split()[1] for line in lines[1:]] == ["2.5", "0.5", "0.8", "0.51"]
    assert "up to 0.2 keeps the gain" in lines[0]
    assert [line.split()[0] for line in lines if line.endswith("<")] == ["2"]
    assert Fewest(GAIN, ((1, WORSE),) * 6).steps == STEPS


def command(place, *more):  # noqa: F811
    words = ["--ckpt", place["checkpoint"], "--input", place["images"], "--out", place["out"], "--device", "cpu"]
    words += ["--reference", place["real"], "--judge", place["judge"], "--steps", "auto", "--auto-images", 8, *more]
    return [str(word) for word in words]


@pytest.fixture
def _real(monkeypatch):
    monkeypatch.setattr("refine.auto_steps.replace", replace)


@pytest.mark.usefixtures("_real")
def test_the_result_is_that_of_the_steps_given(place, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("refine.auto_steps.margin", lambda gain: 10.0)  # a random network gains nothing to be kept
    assert main(command(place, "--eps", 1, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    search = summary["steps_search"]
    assert summary["steps"] == search["steps_taken"] == search["steps"] == search["tried"][-1]["steps"] < STEPS
    assert summary["step_size"] == pytest.approx(1.5 / summary["steps"])
    assert [found["steps"] for found in search["tried"]] == [*range(1, search["steps"] + 1)]
    assert (search["is_kept"], search["margin"], search["usual_steps"]) == (True, 10, STEPS)
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
def test_where_others_do_not_confirm_it_seven_are_taken(place, capsys, monkeypatch):  # noqa: F811
    def judged(*found):
        parts = iter([[GAIN] * len(found), list(found)])
        monkeypatch.setattr(Judging, "verdicts", lambda *_: next(parts))

    monkeypatch.setattr("refine.auto_steps.choose_steps", lambda *_: Fewest(GAIN, ((1, WORSE), (2, ALIKE))))
    judged(ALIKE, WORSE)
    assert main(command(place, "--eps", 1)) == 0
    printed = capsys.readouterr().out
    assert "against 12 real ones, 2 steps after 7:" in printed
    assert "of a judge: KID 0.5 -> 0.51 (difference -0.1 to +0.12 in 95 % of the resamples; up to 0.2 keeps" in printed
    assert "2 steps are not sure to keep the gain there: 7 are taken" in printed
    assert ", 7 steps" in printed
    judged(ALIKE, WORSE)
    assert main(command(place, "--eps", 1, "--overwrite", "--auto-accept", "best")) == 0
    assert "taken all the same" in (printed := capsys.readouterr().out)
    assert ", 2 steps" in printed
    judged(ALIKE)
    assert main(command(place, "--eps", 1, "--overwrite")) == 0
    assert ", 2 steps" in (printed := capsys.readouterr().out)
    assert "not sure" not in printed
    all_worse = tuple((steps, WORSE) for steps in range(1, STEPS))
    monkeypatch.setattr("refine.auto_steps.choose_steps", lambda *_: Fewest(GAIN, all_worse))
    assert main(command(place, "--eps", 1, "--overwrite")) == 0
    assert "fewer steps than 7 are not sure to keep its gain" in (printed := capsys.readouterr().out)
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
