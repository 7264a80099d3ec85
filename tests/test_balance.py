"""Balanced targets: exact counts, the highest total, and priors that people write."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

import refine.transport
from refine.balance import balanced, class_counts, parse_prior
from robust_models import UserError

CLASSES = ("airplane", "automobile", "bird")


def random_log_probs(n: int, c: int, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    """Peaked, and crowded into a few classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator) + torch.randn(c, generator=generator)
    return (scale * logits).log_softmax(1)


def total(log_probs: torch.Tensor, y: torch.Tensor) -> float:
    return log_probs.double()[torch.arange(len(y)), y].sum().item()


def best_total(log_probs: torch.Tensor, counts: np.ndarray) -> float:
    """The oracle: every class as many columns as it has places."""
    columns = np.repeat(log_probs.double().numpy(), counts, axis=1)
    rows, chosen = linear_sum_assignment(columns, maximize=True)
    return float(columns[rows, chosen].sum())


def check_optimal(log_probs: torch.Tensor, prior: torch.Tensor | None = None) -> torch.Tensor:
    y = balanced(log_probs, prior)
    counts = np.bincount(y.numpy(), minlength=log_probs.shape[1])
    weights = torch.ones(log_probs.shape[1]) if prior is None else prior
    quota = len(y) * weights.double().numpy() / weights.double().sum().item()
    assert y.dtype == torch.int64
    assert (np.abs(counts - quota) < 1).all()
    assert (counts[quota == 0] == 0).all()
    assert total(log_probs, y) == pytest.approx(best_total(log_probs, counts), rel=1e-9, abs=1e-9)
    return y


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (1, 5), (7, 7), (60, 3), (61, 7), (150, 40), (12, 50)])
def test_the_total_is_the_highest_for_these_counts(n, c, scale):
    log_probs = random_log_probs(n, c, scale=scale)
    check_optimal(log_probs)
    check_optimal(log_probs, torch.rand(c) + 0.01)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 25), st.integers(1, 6)),
        elements=st.one_of(st.integers(-3, 0), st.floats(-(2.0**7), 0, width=32)),
    ),
    st.data(),
)
def test_the_total_is_the_highest_whatever_the_scores(scores, data):
    """Many exact ties, equal rows, equal columns, single classes."""
    weights = data.draw(st.lists(st.integers(0, 4), min_size=scores.shape[1], max_size=scores.shape[1]).filter(any))
    check_optimal(torch.from_numpy(scores), torch.tensor(weights).float())


def test_a_bad_start_costs_time_only(monkeypatch):
    log_probs = random_log_probs(150, 12)
    expected = balanced(log_probs)
    monkeypatch.setattr(refine.transport, "_TEMPERATURES", ())
    assert torch.equal(balanced(log_probs), expected)
    monkeypatch.setattr(refine.transport, "_TEMPERATURES", (1e-3, 50.0))
    assert torch.equal(balanced(log_probs), expected)


@pytest.mark.parametrize("chunk", [1, 100, 10**9])
def test_the_result_does_not_depend_on_the_cut_into_chunks(monkeypatch, chunk):
    log_probs = random_log_probs(203, 9)
    expected = balanced(log_probs)
    monkeypatch.setattr(refine.transport, "_CHUNK", chunk)
    assert torch.equal(balanced(log_probs), expected)


def test_equal_images_are_dealt_out():
    y = balanced(torch.full((3000, 30), -3.0))
    assert torch.bincount(y).tolist() == [100] * 30
    crowded = torch.tensor([0.9, 0.06, 0.04]).log().repeat(3000, 1)
    assert torch.bincount(balanced(crowded)).tolist() == [1000] * 3


def test_probability_zero_is_taken_only_where_it_must_be():
    log_probs = random_log_probs(90, 6)
    log_probs[torch.rand(90, 6) < 0.4] = -torch.inf
    log_probs[:, 5] = -torch.inf
    y = balanced(log_probs)
    assert torch.bincount(y).tolist() == [15] * 6
    forbidden = log_probs[torch.arange(90), y] == -torch.inf
    penalised = log_probs.clamp(min=-1e6)
    assert total(penalised, y) == pytest.approx(best_total(penalised, np.full(6, 15)), rel=1e-9)
    assert forbidden.sum() >= 15
    y = balanced(torch.full((8, 4), -torch.inf))
    assert torch.bincount(y).tolist() == [2] * 4


def test_already_balanced_guesses_stay():
    y = torch.arange(40) % 4
    log_probs = (torch.randn(40, 4) + 20 * torch.nn.functional.one_hot(y, 4)).log_softmax(1)
    assert torch.equal(balanced(log_probs), y)


def test_with_fewer_images_than_classes_the_likely_classes_are_served():
    log_probs = torch.full((2, 5), -9.0)
    log_probs[:, 3:] = -1.0
    assert sorted(balanced(log_probs).tolist()) == [3, 4]


def test_half_precision_and_double_are_taken():
    log_probs = random_log_probs(30, 3).bfloat16()
    assert torch.equal(balanced(log_probs), balanced(log_probs.double()))


@pytest.mark.parametrize(
    ("n", "weights", "counts"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [0.5, 0.3, 0.2], [5, 3, 2]),
        (10, [0, 1, 1], [0, 5, 5]),
        (100, [0.1, 0.2, 0.7], [10, 20, 70]),  # 0.1 + 0.2 + 0.7 is less than 1 in floats
        (3, [2, 3, 4], [1, 1, 1]),
        (1, [1e-30, 3e-30], [0, 1]),
    ],
)
def test_counts_follow_the_prior_by_largest_remainder(n, weights, counts):
    assert class_counts(n, torch.tensor(weights, dtype=torch.float64)).tolist() == counts


def test_of_equal_remainders_the_likelier_classes_go_up():
    assert class_counts(5, torch.ones(3), first=np.array([1.0, 2.0, 2.0])).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([1.0, -2.0, 1.0], r"prior: the weight of class 1 is -2; expected 0 or more"),
        ([1.0, float("nan"), 1.0], r"prior: the weight of class 1 is nan"),
        ([0.0, 0.0, 0.0], r"prior: all weights are 0"),
        ([1.0, 1.0], r"prior: \[2\] weights for 3 classes; expected one for each"),
    ],
)
def test_what_is_no_prior_is_refused(prior, message):
    with pytest.raises(UserError, match=message):
        balanced(random_log_probs(6, 3), torch.tensor(prior))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(value):
    log_probs = random_log_probs(6, 3)
    log_probs[4, 1] = value
    with pytest.raises(UserError, match=r"log_probs: image 4 has NaN or \+inf among its log-probabilities \(1 such"):
        balanced(log_probs)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 3, dtype=torch.int64)])
def test_what_is_no_matrix_of_log_probabilities_is_refused(wrong):
    with pytest.raises(UserError, match=r"log_probs: .*expected float \[N,C\] with N, C > 0"):
        balanced(wrong)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", json.dumps({"bird": 3, "Airplane": 1})),
        ("p.json", json.dumps({"2": 0.75, "0": 0.25})),
        ("p.json", json.dumps([1, 0, 3])),
        ("p.csv", "class,weight\nbird,3\nairplane,1\n"),
        ("p.csv", "bird;3\nairplane;1\n"),
        ("p.csv", "0.25\n0\n0.75\n"),
    ],
)
def test_a_prior_is_read_from_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert parse_prior(str(tmp_path / name), CLASSES).tolist() == [0.25, 0.0, 0.75]


def test_the_uniform_prior_has_a_name():
    assert parse_prior("uniform", CLASSES).tolist() == [1 / 3] * 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", '{"brid": 1}', "prior: .*p.json: class 'brid' is none of .* 3 classes; did you mean bird?"),
        ("p.json", '{"bird": -1}', "prior: .*p.json: the weight of bird is -1; expected a number of 0 or more"),
        ("p.csv", "bird,many", "prior: .*p.csv: the weight of bird is many; expected a number of 0 or more"),
        ("p.json", '{"bird": 0}', "prior: all weights in .*p.json are 0"),
        ("p.json", '{"bird": 1, "2": 1}', "prior: .*p.json names bird twice"),
        ("p.json", "[1, 2]", "prior: .*p.json has 2 weights without names for 3 classes"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        parse_prior(str(tmp_path / name), CLASSES)


def test_a_prior_that_is_no_file_is_refused():
    with pytest.raises(UserError, match="prior: 'unifrom' is neither uniform nor a CSV or JSON file"):
        parse_prior("unifrom", CLASSES)
    with pytest.raises(UserError, match=r"prior: nowhere.json cannot be read \(No such file or directory\)"):
        parse_prior("nowhere.json", CLASSES)
