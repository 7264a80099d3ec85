"""Inception Score and precision/recall: closed forms and promises."""

import pytest
import torch

from robust_models.metrics import inception_score, precision_recall


def test_uniform_predictions_score_1_and_confident_balanced_ones_the_number_of_classes():
    assert inception_score(torch.zeros(50, 10)) == pytest.approx(1, abs=1e-12)
    certain = 200.0 * torch.eye(10).repeat(5, 1)
    assert inception_score(certain) == pytest.approx(10, rel=1e-9)
    assert inception_score(certain[:1].repeat(50, 1)) == pytest.approx(1, abs=1e-9)  # one class only


def test_score_grows_with_confidence_and_ignores_order_and_constant_logits():
    logits = torch.randn(200, 10, dtype=torch.float64)
    assert inception_score(3 * logits) > inception_score(logits) > 1
    assert inception_score(logits.flip(0) + 7) == pytest.approx(inception_score(logits), rel=1e-12)


def test_a_set_covers_itself_and_nothing_far_away():
    features = torch.randn(100, 8)
    assert precision_recall(features, features) == (1.0, 1.0)
    assert precision_recall(features, features + 1000) == (0.0, 0.0)


def test_precision_and_recall_swap_with_the_sets_and_see_a_missing_mode():
    whole = torch.cat([torch.randn(100, 4), torch.randn(100, 4) + 50])
    half = torch.randn(100, 4)
    precision, recall = precision_recall(half, whole)
    assert precision_recall(whole, half) == (recall, precision)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5


def test_distances_on_a_line_by_hand():
    # Radii of 0, 1, 3, 6 with k = 1: 1, 1, 2, 3; -0.5 and 4.5 lie inside, 9.5 does not.
    manifold = torch.tensor([[0.0], [1.0], [3.0], [6.0]])
    points = torch.tensor([[-0.5], [4.5], [9.5], [-1.5]])
    assert precision_recall(points, manifold, k=1)[0] == 0.5
    with pytest.raises(ValueError, match="more than 3 points, got 3"):
        precision_recall(points, manifold[:3])
