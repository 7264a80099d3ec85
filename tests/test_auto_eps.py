"""--eps auto, from the command line to the figures."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from refine import auto_judging
from refine.auto_eps import Curve, Point
from refine.auto_judging import Judging, Verdict, notes
from refine.cli import main
from robust_models import load, open_images, save
from robust_models.features import open_features
from tests.tiny import SIZE, tiny_classifier, tiny_pixels


@pytest.fixture
def place(tmp_path: Path, checkpoint: Path) -> dict[str, Path]:
    """A classifier that refines, another one that judges, images and real ones."""
    torch.manual_seed(7)
    save(tiny_classifier(), tmp_path / "judge.safetensors")
    for name, seed in (("images", 1), ("real", 2)):
        pixels, labels = tiny_pixels(24, seed)
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=labels)
    names = ("images.npz", "real.npz", "judge.safetensors", "out.npz")
    return {"checkpoint": checkpoint, **{name.split(".")[0]: tmp_path / name for name in names}}


def command(place: dict[str, Path], *more: object) -> list[str]:
    words = ["--ckpt", place["checkpoint"], "--input", place["images"], "--out", place["out"], "--eps", "auto"]
    words += ["--reference", place["real"], "--judge", place["judge"], "--steps", 2, "--device", "cpu"]
    words += ["--auto-accept", "best", *more]
    return [str(word) for word in words]


def test_the_best_eps_of_the_curve_refines_all_and_is_judged_on_the_others(place, capsys):
    assert main(command(place, "--json", "--auto-images", 8, "--targets", "class:automobile")) == 0
    summary = json.loads(capsys.readouterr().out)
    search = summary["eps_search"]
    distances = {point["eps"]: point["distance"] for point in search["curve"]}
    assert summary["eps"] == search["eps"] == min(distances, key=distances.__getitem__)
    assert list(distances) == sorted(distances)
    assert search["n_held_apart"] == 8
    assert search["n_reference"] == 12
    assert search["judge"] == f"classifier:{place['judge']}"
    assert search["measure"] == "kid"  # 8 images are fewer than the judge's features
    assert search["others"] == []
    low, high = search["difference_interval"]
    assert low <= search["distance_after"] - search["distance_before"] <= high
    assert all(0 <= point["recall"] <= 1 and point["inception_score"] >= 1 for point in search["curve"])
    with np.load(place["out"]) as arrays:
        assert arrays["arr_0"].shape == (24, SIZE, SIZE, 3)


def test_the_result_is_that_of_the_same_eps_given(place, capsys):
    assert main(command(place, "--json")) == 0
    eps = json.loads(capsys.readouterr().out)["eps"]
    chosen = np.load(place["out"])["arr_0"]
    words = command(place, "--overwrite")
    words[words.index("auto")] = str(eps)
    assert main(words) == 0
    assert np.array_equal(np.load(place["out"])["arr_0"], chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"judge": p["checkpoint"]}, "judge: .*tiny.safetensors is the classifier that refines"),
        (lambda p: {"real": p["small"]}, "small.npz: images are 8x8; classifier:.* takes 16x16"),
        (lambda p: {"real": p["few"]}, "eps: auto needs at least 4 images and 4 real; got 24 and 3"),
        (lambda p: {"judge": Path("nowhere.pt")}, "no file nowhere.pt"),
    ],
)
def test_bad_input_is_one_line(place, change, message, tmp_path, capsys):
    pixels, _ = tiny_pixels(3)
    np.savez(tmp_path / "few.npz", arr_0=pixels)
    np.savez(tmp_path / "small.npz", arr_0=np.zeros((9, 8, 8, 3), np.uint8))
    place |= {"few": tmp_path / "few.npz", "small": tmp_path / "small.npz"}
    assert main(command(place | change(place))) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, said), said
    assert not place["out"].exists()


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("inception-76", "judge: no file inception-76; give a file or one of"),
        ("inception-768,nobody", "judge: no file inception-768,nobody; give a file"),
        ("nobody,inception-768", "judge: no file nobody; give"),
    ],
)
def test_a_judge_that_is_none_is_found_before_any_work(place, capsys, judge, message):
    assert main([*command(place), "--judge", judge, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_judge_of_the_classifiers_kind_and_one_that_is_not_robust_are_said(place, capsys):
    assert main(command(place)) == 0
    said = capsys.readouterr().err
    assert "judge.safetensors is a classifier of the same classes as" in said
    assert ("nothing says that" in said) == (load(place["checkpoint"]).description.threat_model is None)
    torch.manual_seed(3)
    weak = tiny_classifier()
    weak.description = replace(weak.description, threat_model=None)
    assert notes([], {"weak": weak}) == [
        "nothing says that weak was trained to withstand attacks; if not, its changes look like noise"
    ]


def test_auto_asks_for_what_it_needs(place, capsys):
    words = command(place)[:8]
    assert main(words) == 2
    assert "eps: auto needs --reference REAL_IMAGES" in capsys.readouterr().err


def test_a_gain_that_others_do_not_confirm_leaves_the_images_as_they_are(place, capsys, monkeypatch):
    low = Verdict("frechet", 8.0, 7.9, (-0.3, 0.1), 12, 12, 64, "a judge")
    monkeypatch.setattr(Judging, "verdicts", lambda *_: [low])
    points = (Point(eps, distance, (7.0, 9.0), None, None, None, 0.5) for eps, distance in ((0.0, 8.0), (1.5, 7.0)))
    curve = Curve(tuple(points))
    monkeypatch.setattr("refine.auto_eps.choose_eps", lambda *_: curve)
    assert main(command(place, "--auto-accept", "significant")) == 0
    printed = capsys.readouterr().out
    assert "of a judge: Frechet distance 8.0 -> 7.9 (difference -0.3 to +0.1 in 95 % of the resamples): no" in printed
    assert "that is 12 images: few for a verdict; --auto-images takes more" in printed
    assert "eps 1.5 is no significant gain: the images are left as they are" in printed
    assert np.array_equal(np.load(place["out"])["arr_0"], np.load(place["images"])["arr_0"])
    sure = replace(low, difference_interval=(-0.3, -0.1))
    contrary = replace(low, difference_interval=(0.1, 0.3), judge="another")
    monkeypatch.setattr(Judging, "verdicts", lambda *_: [sure, contrary])
    assert main(command(place, "--auto-accept", "significant", "--overwrite")) == 0
    assert "of another: Frechet distance 8.0 -> 7.9 (difference +0.1 to +0.3" in (printed := capsys.readouterr().out)
    assert "a gain to one judge and a loss to another: the images are left as they are" in printed
    monkeypatch.setattr(Judging, "verdicts", lambda *_: [sure, low])
    assert main(command(place, "--auto-accept", "significant", "--overwrite")) == 0
    assert "no significant gain" not in capsys.readouterr().out


def test_a_judge_that_stays_sees_real_images_once_as_long_as_they_are_the_same(place, monkeypatch):
    seen = []
    whole = auto_judging._features

    def counted(judge, images, index):
        seen.append(len(index))
        return whole(judge, images, index)

    monkeypatch.setattr(auto_judging, "_features", counted)
    judge = open_features(f"classifier:{place['judge']}")
    first = auto_judging._reference_features(judge, open_images(place["real"]))
    again = auto_judging._reference_features(judge, open_images(place["real"]))
    assert seen == [24]
    assert torch.equal(first, again)
    np.savez(place["real"], arr_0=tiny_pixels(24, 9)[0])
    other = auto_judging._reference_features(judge, open_images(place["real"]))
    assert seen == [24, 24]
    assert not torch.equal(first, other)
