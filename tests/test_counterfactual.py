"""Counterfactuals: the closest images by hand, cones, and what the command writes."""

import itertools
import json
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from refine.cli import main
from refine.synthesis.changes import MID, drawn_change, scale_of
from refine.synthesis.smallest_change import FIRST, LARGEST, Search, checkpoints, closest, into_cone
from robust_models import load, open_images, save, to_float
from robust_models.threat import NORMS
from tests.test_refine_shards import Killed, everything, killed_before, leftovers
from tests.tiny import CLASSES, tiny_classifier, tiny_pixels

SIDE = 8
ways = pytest.mark.parametrize(("norm", "method"), [*itertools.product(("l1", "l1.5", "l2", "linf"), FIRST)])


class Linear(nn.Module):
    """Logits 0 and weight * x + bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * SIDE * SIDE, generator=torch.Generator().manual_seed(2)))
        self.bias = nn.Parameter(-self.weight.detach().sum() / 2 - 8)  # grey is of class 0

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


def grey(n: int) -> Tensor:
    """Images about mid-grey, as they are stored."""
    levels = torch.randint(120, 136, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return to_float(levels.to(torch.uint8))


def most_gain(model: Linear, x: Tensor, norm: str, eps: Tensor) -> Tensor:
    """By how much the score can rise in balls of these radii [n] and in [0,1]."""
    weight = model.weight.detach().view(1, 3, SIDE, SIDE).expand_as(x)
    return (NORMS[norm].linear_oracle(weight, x, eps) * weight).flatten(1).sum(1)


@ways
def test_the_closest_image_of_a_linear_classifier_is_where_it_begins_to_say_its_target(norm, method):
    model, x, y = Linear(), grey(3), torch.ones(3, dtype=torch.int64)
    found = closest(model, x, y, Search(norm, None, method, 40, 14, 0.8))
    assert found.is_valid.all()
    with torch.no_grad():
        probs = model(to_float(found.x_u8)).softmax(1)[:, 1]
        needed = math.log(0.8 / 0.2) - model(x)[:, 1]
    assert (probs >= 0.8 - 1e-6).all()
    eps = NORMS[norm].length(to_float(found.x_u8) - x)
    assert (most_gain(model, x, norm, 0.9 * eps) < needed).all()  # no ball a tenth smaller has such an image
    assert (eps <= found.eps + NORMS[norm].length(torch.full_like(x, 0.5 / 255))).all()


@ways
def test_in_a_given_ball_the_surest_image_is_taken(norm, method):
    model, x, y = Linear(), grey(4), torch.ones(4, dtype=torch.int64)
    eps = 0.02 * float(NORMS[norm].length(torch.ones(1, 3, SIDE, SIDE)))
    found = closest(model, x, y, Search(norm, eps, method, 60))
    with torch.no_grad():
        gain = model(to_float(found.x_u8))[:, 1] - model(x)[:, 1]
    assert (gain > 0.9 * most_gain(model, x, norm, found.eps)).all()
    delta = to_float(found.x_u8) - x
    assert (NORMS[norm].length(delta) <= eps + NORMS[norm].length(torch.full_like(delta, 0.5 / 255))).all()
    assert found.eps.tolist() == pytest.approx([eps] * 4)


def test_each_image_is_found_alone_as_in_a_batch():
    model, x, y = Linear(), grey(4), torch.tensor([1, 1, 0, 1])
    x[3] = 1.0
    for search in (Search(steps=6, tries=4), Search("l2", 0.5, "projection", steps=6)):
        together = closest(model, x, y, search)
        for i in range(4):
            alone = closest(model, x[[i]], y[[i]], search)
            for one, other in zip(alone, together, strict=True):
                assert torch.equal(one[0], other[i])


def test_an_image_that_says_its_target_already_stays_as_it_is():
    model, x = Linear(), grey(2)
    assert (model(x).softmax(1)[:, 0] > 0.9).all()
    found = closest(model, x, torch.zeros(2, dtype=torch.int64), Search(steps=3, tries=3))
    assert torch.equal(to_float(found.x_u8), x)
    assert found.is_valid.all()


def test_where_no_ball_will_do_the_surest_image_is_kept_and_said_to_be_none():
    model, x, y = Linear(), grey(2), torch.ones(2, dtype=torch.int64)
    with torch.no_grad():
        model.bias -= 1000
    found = closest(model, x, y, Search("l2", steps=4, tries=3))
    assert not found.is_valid.any()
    assert (model(to_float(found.x_u8))[:, 1] > model(x)[:, 1]).all()
    assert found.eps.tolist() == pytest.approx([LARGEST * math.sqrt(3 * SIDE * SIDE)] * 2)


def test_the_model_is_left_as_it_was_found():
    model = tiny_classifier().train()
    closest(model, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), Search(steps=2, tries=2), guide=tiny_classifier())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@given(seed=st.integers(0, 1000), angle=st.floats(0, 90))
def test_a_cone_takes_the_nearest_of_its_directions(seed, angle):
    draw = torch.Generator().manual_seed(seed)
    direction, axis = torch.randn(2, 4, 3, 2, 2, generator=draw)
    axis[0] = direction[0]
    found = into_cone(direction, axis, angle)

    def cosine(one: Tensor, other: Tensor) -> Tensor:
        return torch.cosine_similarity(one.flatten(1).double(), other.flatten(1).double())

    assert (cosine(found, axis) >= math.cos(math.radians(angle)) - 1e-5).all()
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(4))
    inside = cosine(direction, axis) > math.cos(math.radians(angle)) + 1e-5
    torch.testing.assert_close(cosine(found, direction)[inside].float(), torch.ones(int(inside.sum())))
    for _ in range(20):  # no direction of the cone is nearer
        other = into_cone(direction + torch.randn(4, 3, 2, 2, generator=draw), axis, angle)
        assert (cosine(found, direction) >= cosine(other, direction) - 1e-5).all()


def test_a_guide_directs_the_steps_within_its_angle():
    """With a cone of 0 degrees they are the classifier's own, with 90 those of the guide but for what opposes it."""
    model, guide, x, y = Linear(), Linear(), grey(2), torch.ones(2, dtype=torch.int64)
    with torch.no_grad():
        guide.weight.copy_(model.weight.flip(0))
    search = Search("l2", 0.5, "frank-wolfe", 10)
    own, narrow, wide = (
        to_float(found.x_u8) - x
        for found in (
            closest(model, x, y, search),
            closest(model, x, y, search, guide=guide, angle=0),
            closest(model, x, y, search, guide=guide, angle=90),
        )
    )
    torch.testing.assert_close(narrow, own)
    along = lambda delta, weight: torch.cosine_similarity(delta.flatten(1), weight[None])  # noqa: E731
    assert (along(wide, guide.weight) > along(own, guide.weight) + 0.5).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 75, 400])
def test_checks_begin_late_and_end_with_the_steps(steps):
    found = sorted(checkpoints(steps))
    assert found[0] == math.ceil(0.22 * steps)
    assert found[-1] <= steps
    parts = [b - a for a, b in itertools.pairwise(found)]
    assert all(part <= math.ceil(0.19 * steps) for part in parts)


def test_a_change_can_be_read_back_from_its_picture():
    before = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    after = before.clone()
    after[1:3] = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    after[3, 0, 0, 0] += 1
    picture, scale = drawn_change(before, after), scale_of(before, after)
    assert (picture[0] == MID).all()
    read = (picture.float() - MID) / scale.view(-1, 1, 1, 1)
    assert (read - (after.float() - before.float())).abs().max() <= 0.5 / scale.min() + 1e-4
    assert {int(picture[3].min()), int(picture[3].max())} & {MID - 127, MID + 127}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three classifiers and seven images."""
    for seed, name in enumerate(("explained", "guide", "judge")):
        torch.manual_seed(seed)
        model = tiny_classifier()
        with torch.no_grad():
            model.head.weight *= 40  # one that is sure of what it says
        save(model, tmp_path / f"{name}.safetensors")
    pixels, labels = tiny_pixels(7)
    np.savez(tmp_path / "in.npz", arr_0=pixels, arr_1=labels, class_names=np.array(CLASSES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, out="out.npz"):
    given = ["--ckpt", "explained.safetensors", "--input", "in.npz", "--out", out, "--steps", "3", "--device", "cpu"]
    return main([str(word) for word in ["--task", "counterfactual", *given, *words]])


def rows(root, out="out.npz"):
    return [json.loads(line) for line in (root / f"{out}.manifest.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("targets", ["second", "all", "class:bird", "given"])
def test_the_table_says_of_the_files_what_is_true(root, capsys, targets):
    words = ["--targets", targets, "--tries", 3, "--confidence", 0.5, "--norm", "l2", "--changes", "changes.npz"]
    words += ["--judge", "judge.safetensors", "--grid", "grid.png", "--json"]
    assert run(*words) == 0
    summary = json.loads(capsys.readouterr().out)
    images, made, changes = open_images("in.npz"), open_images("out.npz"), open_images("changes.npz")
    model, judge, table = load("explained.safetensors"), load("judge.safetensors"), rows(root)
    assert len(made) == len(changes) == len(table) == summary["n"] == (14 if targets == "all" else 7)
    with torch.no_grad():
        for i, row in enumerate(table):
            x_u8, x_new = images.read(int(row["source"]), int(row["source"]) + 1), made.read(i, i + 1)
            logits = [model(to_float(x))[0] for x in (x_u8, x_new)]
            target = CLASSES.index(row["class"])
            assert row["target"] == target == made.labels[i]
            assert (row["class_before"], row["class_after"]) == tuple(CLASSES[int(one.argmax())] for one in logits)
            probs = [float(one.softmax(0)[target]) for one in logits]
            assert [row["confidence_before"], row["confidence_after"]] == pytest.approx(probs, abs=1e-4)
            assert row["valid"] == (row["class_after"] == row["class"] and row["confidence_after"] >= 0.5)
            delta = to_float(x_new) - to_float(x_u8)
            for name in ("l1", "l1.5", "l2", "linf"):
                assert row[name] == pytest.approx(float(NORMS[name].length(delta)), abs=1e-4)
            assert row["changed"] == pytest.approx(float((delta != 0).any(1).float().mean()), abs=1e-5)
            read = (changes.read(i, i + 1).float() - MID) / row["change_scale"] / 255
            assert (read - delta).abs().max() <= 0.51 / row["change_scale"] / 255 + 1e-4
            seen = judge(to_float(x_new))[0]
            assert row["judge_class"] == CLASSES[int(seen.argmax())]
            assert row["judge_valid"] == (row["judge_class"] == row["class"])
            if targets == "second":
                assert logits[0].topk(2).indices[1] == target
    if targets == "all":
        assert all(row["class"] != row["class_before"] for row in table)
        assert len({(row["source"], row["class"]) for row in table}) == 14
    valid = [row for row in table if row["valid"]]
    assert valid
    assert summary["valid_share"] == pytest.approx(len(valid) / len(table), abs=1e-4)
    assert summary["median"]["l2"] == (pytest.approx(float(np.median([row["l2"] for row in valid])), abs=1e-4))
    assert (root / "grid.png").is_file()
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["already_done"]


def test_killed_at_any_commit_both_sets_come_out_as_undisturbed(root, capsys, monkeypatch):
    monkeypatch.setattr("refine.synthesis.tasks.counterfactual.block_size", lambda *_: 2)
    words = ["--limit", 3, "--tries", 2, "--json"]
    assert run(*words, "--changes", "whole-changes.npz", out="whole.npz") == 0
    for commit in itertools.count():
        out, changes = f"{commit}.npz", f"{commit}-changes.npz"
        with suppress(Killed), killed_before(commit):
            assert run(*words, "--changes", changes, out=out) == 0
            break  # there is no such commit: the run came through
        capsys.readouterr()
        assert run(*words, "--changes", changes, out=out) == 0
        assert everything(root / out) == everything(root / "whole.npz")
        assert everything(root / changes) == everything(root / "whole-changes.npz")
        for name in leftovers(root):  # all was done but the removal of an empty folder
            (root / name).rmdir()
    assert commit > 20


def test_a_guide_is_used_and_recorded(root, capsys):
    assert run("--eps", 1, "--json") == 0
    assert run("--eps", 1, "--guide", "guide.safetensors", "--json", out="guided.npz") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (summary["guide"], summary["angle"], summary["tries"]) == ("guide.safetensors", 90, 1)
    assert [row["l2"] for row in rows(root)] != [row["l2"] for row in rows(root, "guided.npz")]


WRONG = [
    (["--targets", "pseudo"], "targets: 'pseudo' is none of given, second, all"),
    (["--targets", "class:brid"], "did you mean bird"),
    (["--norm", "fourier"], "norm:"),
    (["--norm", "linf", "--eps", "8"], "eps: 8 is outside [0, 1] for norm=linf"),
    (["--confidence", "1"], "confidence:"),
    (["--method", "frank-wolf"], "did you mean frank-wolfe?"),
    (["--eps", "1", "--tries", "3"], "tries: 3 is for the search of the smallest ball"),
    (["--angle", "40"], "angle: 40 is for --guide, which is not given"),
    (["--guide", "guide.safetensors", "--angle", "91"], "angle:"),
    (["--guide", "explained.safetensors"], "guide: explained.safetensors is the classifier itself"),
    (["--guide", "copy.safetensors"], "guide: copy.safetensors is the classifier that is explained"),
    (["--judge", "explained.safetensors"], "judge: explained.safetensors is the classifier that is explained"),
    (["--guide", "guide.safetensors", "--judge", "guide.safetensors"], "judge: guide.safetensors is the one that gui"),
    (["--judge", "cifar10-l2-small"], "judge: classifier 1 has 3 classes, classifier 2 has 10"),
    (["--judge", "nothing.pt"], "judge: no file nothing.pt"),
    (["--changes", "out.npz"], "changes: out.npz overlaps"),
    (["--changes", "in.npz"], "changes: in.npz overlaps"),
    (["--changes", "guide.safetensors"], "changes: guide.safetensors is a file"),
    (["--grid", "in.npz"], "grid: in.npz exists and is no picture"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_does_not_fit_is_one_line_and_nothing_is_written(root, capsys, words, message):
    (root / "copy.safetensors").write_bytes((root / "explained.safetensors").read_bytes())
    before = {path: path.read_bytes() for path in root.iterdir()}
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in root.iterdir()} == before
