"""What a survey's report says, against numbers worked out by hand and in print."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.survey.answers import Store
from eval.survey.cli import SURVEY
from eval.survey.order import Item
from eval.survey.preference import clustered_interval, krippendorff_alpha, share_of
from robust_models.runtime.command import run

LEFT, RIGHT = Item(0, "after", "before"), Item(0, "before", "after")


# ---------------------------------------------------------------------------------------------------------------- alpha

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": sections A (binary, two observers, no data missing)
# and C (nominal, any number of observers, data missing).
BINARY = ("0100000010", "1110010000")
NOMINAL = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def units(observers: tuple[str, ...]) -> list[list[str]]:
    assert len({len(row) for row in observers}) == 1
    return [[value for value in column if value != "."] for column in zip(*observers, strict=True)]


def test_alpha_of_the_published_examples():
    assert krippendorff_alpha(units(BINARY)) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha(units(NOMINAL)) == pytest.approx(0.743, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=12))
def test_alpha_is_what_its_definition_says(values):
    """1 - observed / expected disagreement, from the coincidence matrix written out pair by pair."""
    coincidences: dict[tuple[str, str], float] = {}
    for unit in values:
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                if i != j:
                    coincidences[one, other] = coincidences.get((one, other), 0) + 1 / (len(unit) - 1)
    totals = {c: sum(n for (one, _), n in coincidences.items() if one == c) for c in "abc"}
    n = sum(totals.values())
    observed = sum(count for (one, other), count in coincidences.items() if one != other)
    expected = sum(totals[one] * totals[other] for one in "abc" for other in "abc" if one != other)
    alpha = krippendorff_alpha(values)
    if expected < 1e-9:
        assert alpha is None
    else:
        assert alpha == pytest.approx(1 - (n - 1) * observed / expected)


def test_alpha_at_its_ends():
    assert krippendorff_alpha(["aa", "bb", "aaa"]) == 1
    assert krippendorff_alpha(["ab", "ba"]) == pytest.approx(-0.5)
    assert krippendorff_alpha([]) is krippendorff_alpha(["a", "b", ""]) is krippendorff_alpha(["aa", "aa"]) is None


# --------------------------------------------------------------------------------------------------------------- shares


def test_share_by_hand():
    """8 of 10: Wilson's closed form; p = 2 (1 + 10 + 45) / 1024."""
    found = share_of(8, 10)
    z2 = 1.959963984540054**2
    middle, half = (0.8 + z2 / 20) / (1 + z2 / 10), math.sqrt(z2 * (0.16 / 10 + z2 / 400)) / (1 + z2 / 10)
    assert found.share == 0.8
    assert found.interval == pytest.approx((middle - half, middle + half))
    assert found.p == pytest.approx(112 / 1024)
    assert share_of(0, 0).interval is None


def test_clustered_interval_of_independent_answers_is_about_wilsons():
    rng = np.random.default_rng(0)
    hits = (rng.random((1, 400)) < 0.6).astype(float)
    found = clustered_interval(hits, np.ones((1, 400)), resamples=2000, seed=0)
    assert found is not None
    assert found[1] == "pairs"
    assert found[0] == pytest.approx(share_of(int(hits.sum()), 400).interval, abs=0.01)


def test_clustered_interval_knows_that_a_raters_answers_go_together():
    """Six raters, of whom each says the same always: 300 answers that are worth six."""
    hits = np.repeat([[1.0], [1], [1], [1], [0], [0]], 50, axis=1)
    found = clustered_interval(hits, np.ones((6, 50)), resamples=2000, seed=0)
    assert found is not None
    (low, high), over = found
    assert over == "raters and pairs"
    spread = 1.96 * math.sqrt(2 / 3 * 1 / 3 / 6)
    assert high - low == pytest.approx(2 * spread, rel=0.15)
    assert clustered_interval(hits, np.ones((6, 50)), resamples=2000, seed=0) == found


def test_clustered_interval_resamples_pairs_beside_raters():
    """Six raters agree on each of 12 pairs: twelve votes, however many raters."""
    hits = np.repeat([[1.0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1]], 6, axis=0)
    found = clustered_interval(hits, np.ones((6, 12)), resamples=2000, seed=0)
    assert found is not None
    assert found[0][1] - found[0][0] == pytest.approx(2 * 1.96 * math.sqrt(2 / 3 * 1 / 3 / 12), rel=0.15)
    assert clustered_interval(np.zeros((2, 3)), np.zeros((2, 3)), resamples=100, seed=0) is None


# --------------------------------------------------------------------------------------------------------------- report


def begun(path: Path, classes: dict[int, str | None]) -> Store:
    settings = {"question": "Which?", "pairs": 4, "show_class": False, "ties": True, "checks": 0.1, "seed": 0}
    meta = {"before": "a.npz", "after": "b.npz", "images": 4, "size": (16, 16), "settings": settings}
    return Store(path, {**meta, "sha256": {"before": "aa", "after": "bb"}}, classes)


@pytest.fixture
def answers(tmp_path) -> Path:
    """ann: refined, refined, original, tie; bob: refined, original, original, refined; cy, inattentive: refined.

    Each has passed one of one check but cy, who failed one of two.
    """
    store = begun(tmp_path / "answers.db", {0: "cat", 1: "cat", 2: "dog", 3: "dog"})
    choices = {"ann": ("left", "right", "right", "tie"), "bob": ("left", "left", "right", "right")}
    sides = ("after", "before"), ("before", "after"), ("after", "before"), ("before", "after")
    for rater, chosen in {**choices, "cy": ("left",)}.items():
        for number, choice in enumerate(chosen):
            store.add(rater, Item(number, *sides[number]), choice, 1000 * (number + 1))
        store.add(rater, Item(0, "before", "ruined"), "left", 500)
    store.add("cy", Item(1, "ruined", "after"), "tie", 500)
    return tmp_path / "answers.db"


def report(capsys, *words: object) -> dict:
    assert run(SURVEY, ["report", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_report_by_hand(answers, capsys):
    found = report(capsys, answers)
    assert found["excluded"] == ["cy"]
    preference = found["preference"]
    assert (preference["hits"], preference["n"], preference["ties"], preference["answers"]) == (4, 7, 1, 8)
    assert preference["share"] == pytest.approx(4 / 7)
    assert preference["p"] == 1.0
    assert (found["n_raters"], found["n_pairs"]) == (2, 4)
    assert {name: (one["hits"], one["n"], one["ties"]) for name, one in found["classes"].items()} == {
        "cat": (3, 4, 0),
        "dog": (1, 3, 1),
    }
    ann, bob, cy = (found["raters"][name] for name in ("ann", "bob", "cy"))
    assert (ann["share"], ann["ties"], ann["checks_passed"], ann["checks"]) == (pytest.approx(2 / 3), 1, 1, 1)
    assert ann["median_s"] == 2.0  # of 1, 2, 3, 4 and the check's 0.5
    assert (bob["share"], cy["checks_passed"], cy["checks"]) == (0.5, 1, 2)
    assert (found["left"]["hits"], found["left"]["n"]) == (3, 7)
    # Units RR, RO, OO, TR: values R 4, O 3, T 1 of n = 8; unlike ordered pairs 2 + 2; 64 - 26 = 38 by chance.
    assert found["alpha"] == {"alpha": pytest.approx(1 - 7 * 4 / 38), "pairs": 4}
    assert found["clustered_over"] == "pairs"
    assert 0 <= found["clustered_interval"][0] <= 4 / 7 <= found["clustered_interval"][1] <= 1
    assert found["sha256"] == {"before": "aa", "after": "bb"}


def test_min_checks_decides_who_counts(answers, capsys):
    found = report(capsys, answers, "--min-checks", "0.5")
    assert found["excluded"] == []
    assert (found["n_raters"], found["preference"]["hits"], found["preference"]["n"]) == (3, 5, 8)


def test_the_report_in_words(answers, capsys):
    assert run(SURVEY, ["report", str(answers)]) == 0
    text = capsys.readouterr().out
    for line in (
        '"Which?"\nb.npz (refined) against a.npz\n',
        "preference for the refined image: 57.1 % of 7 decided (25.0 to 84.2), p = 1\n",
        "2000 resamples of pairs; with fewer than 5 raters it holds for these raters only\n",
        "no difference: 12.5 % of the answers\n",
        "agreement between raters: Krippendorff's alpha 0.263 (nominal, 4 pairs of several raters)\n",
        "the left image was chosen in 42.9 % of 7 decided",
        "N = 8 answers of 2 raters on 4 pairs\n",
        "  dog: 33.3 % of 3 decided (6.1 to 79.2), 1 no difference\n",
        "1 of 2 checks passed; median 0.5 s; left out\n",
        "left out of all but their own lines, for passing less than 80.0 % of their checks: cy\n",
    ):
        assert line in text, line


def test_many_raters_are_resampled_too(tmp_path, capsys):
    store = begun(tmp_path / "answers.db", dict.fromkeys(range(4)))
    for rater in "abcde":
        for number in range(4):
            store.add(rater, Item(number, "after", "before"), "left" if number else "right", 1000)
    found = report(capsys, tmp_path / "answers.db")
    assert found["clustered_over"] == "raters and pairs"
    assert found["classes"] == {}
    assert found["alpha"]["alpha"] == 1
    assert found["raters"]["a"]["checks"] == 0
    assert found["excluded"] == []


def test_nothing_decided_is_said(tmp_path, capsys):
    store = begun(tmp_path / "answers.db", dict.fromkeys(range(4)))
    store.add("ann", LEFT, "tie", 1000)
    assert run(SURVEY, ["report", str(tmp_path / "answers.db")]) == 0
    text = capsys.readouterr().out
    assert "no preference: not one decided answer is left (N = 1 answer of 1 rater on 1 pair)" in text
    assert "  ann: none decided, 1 no difference; 0 of 0 checks passed; median 1.0 s" in text


def test_agreement_of_one_rater_is_not_defined(tmp_path, capsys):
    begun(tmp_path / "answers.db", dict.fromkeys(range(4))).add("ann", RIGHT, "right", 1000)
    assert run(SURVEY, ["report", str(tmp_path / "answers.db")]) == 0
    assert "agreement between raters: not defined; it needs pairs that two raters judged" in capsys.readouterr().out


def test_bad_files_are_one_line(answers, tmp_path, capsys):
    (tmp_path / "text").write_text("hello, this is not a database of any kind\n" * 40)
    (tmp_path / "cut").write_bytes(answers.read_bytes()[:5000])
    (tmp_path / "empty").touch()
    begun(tmp_path / "none", {0: None})
    for name, line in (
        ("missing", "answers: no file "),
        ("text", "is no file of answers, or broken (file is not a database)"),
        ("cut", "is no file of answers, or broken ("),
        ("empty", "is no file of answers, or broken (no such table: survey)"),
        ("none", "has no answers yet"),
    ):
        assert run(SURVEY, ["report", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1
    assert run(SURVEY, ["report", str(answers), "--resamples", "5"]) == 2
    assert capsys.readouterr().err == "error: resamples: input should be greater than or equal to 100; got 5\n"
