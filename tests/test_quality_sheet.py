"""bigroc eval quality --metrics all: every metric that can be had, in every feature space asked for, one pass each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.cli import main
from eval.quality.explain import explained
from eval.quality.metrics import METRICS, few_images
from robust_models import UserError, load, open_images, save
from robust_models.metrics.cmmd import cmmd
from robust_models.metrics.density_coverage import density_coverage
from robust_models.metrics.diversity import nearest, within_class_distance
from robust_models.metrics.vendi import vendi_score
from tests.test_quality import QUALITY, Pooled, features_of, pooled, run, sets  # noqa: F401  (fixtures)
from tests.tiny import tiny_classifier, tiny_pixels

ROOT = Path(__file__).parents[1]
CANNOT_HERE = {"fd-dinov2", "cmmd", "labels", "moved"}


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A machine without weights of DINOv2 and CLIP."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


@pytest.fixture
def judge(sets):  # noqa: F811
    torch.manual_seed(3)
    save(tiny_classifier(), sets / "judge.safetensors")
    return f"{sets}/judge.safetensors"


def sheet(monkeypatch, spaces: dict[str, Pooled]) -> None:
    """Feature spaces by name; another name is as if it were not on this machine."""

    def opened(name, **_):
        if name not in spaces:
            raise UserError(f"features: {name} is not on this machine")
        return spaces[name]

    monkeypatch.setattr("eval.quality.run.open_features", opened)
    monkeypatch.setattr("eval.cli.check_features", lambda *_, **__: None)


def named(name: str) -> Pooled:
    made = Pooled(sha256=name)
    made.name = name
    return made


def test_the_whole_sheet_is_one_pass_and_says_what_it_leaves_out(monkeypatch, capsys):
    space = named("inception")
    sheet(monkeypatch, {"inception": space})
    status, found, _ = run(capsys, f"{QUALITY} --metrics all --cache none")
    assert status == 0
    assert space.seen == 140
    assert set(found["metrics"]) == set(METRICS) - CANNOT_HERE
    assert set(found["left_out"]) == CANNOT_HERE
    assert found["left_out"]["cmmd"] == "features: clip is not on this machine"
    assert found["left_out"]["moved"].startswith("originals: needed by moved")
    a, b = features_of("a.npz"), features_of("b.npz")
    assert (found["density"], found["coverage"]) == density_coverage(a, b)
    assert found["vendi"] == pytest.approx(vendi_score(a))
    assert "frechet_infinite" in found  # 60 images are five for each of 12 features


def test_a_second_space_has_its_numbers_and_its_pass(monkeypatch, capsys):
    first, second = named("inception"), named("inception-64")
    second.num_classes, second.spatial_dim = None, None
    sheet(monkeypatch, {"inception": first, "inception-64": second})
    words = f"{QUALITY} --metrics fid,is,kid --features inception,inception-64 --cache none"
    status, found, _ = run(capsys, words)
    assert status == 0
    assert (first.seen, second.seen) == (140, 140)
    assert found["metrics"] == ["fid", "is", "kid"]
    (other,) = found["spaces"]
    assert (other["features"], other["metrics"]) == ("inception-64", ["fid", "kid"])
    assert other["frechet"] == pytest.approx(found["frechet"])
    assert main([*words.split(), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "in inception-64:" in printed
    assert printed[printed.index("in inception-64:") + 1].startswith(
        "  FID, the Frechet distance in inception-64 (12-d"
    )


def test_a_metric_of_its_own_features_shares_the_pass_where_they_are_asked_for(monkeypatch, capsys):
    clip = named("clip")
    sheet(monkeypatch, {"clip": clip})
    _, found, _ = run(capsys, f"{QUALITY} --metrics kid,cmmd --features clip --cache none")
    assert clip.seen == 140
    assert found["cmmd"] == pytest.approx(cmmd(features_of("a.npz"), features_of("b.npz")), rel=1e-6)


def test_what_no_space_can_give_is_refused_unless_all_is_asked_for(monkeypatch, capsys):
    space = named("inception-64")
    space.num_classes = None
    sheet(monkeypatch, {"inception-64": space})
    status, _, err = run(capsys, f"{QUALITY} --metrics is --features inception-64")
    assert (status, "metrics: is needs the logits of a whole network, which inception-64 has not" in err) == (2, True)
    found = run(capsys, f"{QUALITY} --metrics all --features inception-64")[1]
    assert "needs the logits" in found["left_out"]["is"]


MISSING = [
    ("--metrics labels", "judge_classifier: needed by labels; name a classifier that did not refine"),
    ("--metrics moved", "originals: needed by moved; give the images as they were before they were refined"),
    ("--nearest-picture near.png", "nearest_picture: is of the metric nearest; add it to --metrics"),
    ("--metrics within-class --reference unlabelled.npz", "within-class needs real images with labels: an .npz with"),
    ("--metrics cmmd --reference null", "reference: needed by every metric but is, vendi, labels, moved"),
]


@pytest.mark.parametrize(("words", "message"), MISSING)
def test_what_a_metric_lacks_is_one_line(pooled, capsys, words, message):  # noqa: F811
    np.savez("unlabelled.npz", arr_0=tiny_pixels(9)[0])
    status, _, err = run(capsys, f"{QUALITY} {words} --cache none")
    assert (status, message in err) == (2, True)
    assert err.splitlines()[-1].startswith("error: ")


def test_variety_beside_the_reference_and_a_picture_of_what_is_most_alike(pooled, capsys, sets):  # noqa: F811
    words = f"{QUALITY} --metrics within-class,nearest --nearest-picture near.png --cache none"
    status, found, _ = run(capsys, words)
    assert status == 0
    a, b = features_of("a.npz"), features_of("b.npz")
    y = torch.from_numpy(open_images("a.npz").labels)
    assert found["within_class"] == pytest.approx(within_class_distance(a, y))
    expected = nearest(a, b)
    assert found["nearest_distance"] == pytest.approx(float(expected.distance.mean()))
    assert found["authenticity"] == expected.authenticity
    with Image.open("near.png") as picture:
        pixels = np.asarray(picture)
    closest = int((expected.distance / expected.spacing).argmin())
    for images, i in (("a.npz", closest), ("b.npz", int(expected.which[closest]))):
        wanted = open_images(images).read(i, i + 1)[0].permute(1, 2, 0).numpy()
        shown = np.lib.stride_tricks.sliding_window_view(pixels[:, :, 0], (96, 96))[:, :, ::6, ::6]
        assert (shown == wanted[:, :, 0]).all((2, 3)).any(), images  # enlarged six times
    np.savez("mine.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    status, _, err = run(capsys, words.replace("near.png", "mine.npz"))
    assert (status, "nearest_picture: mine.npz exists and is no picture" in err) == (2, True)


def test_labels_are_seen_by_a_classifier_that_took_no_part(judge, capsys):
    images = open_images("a.npz")
    words = f"quality --images a.npz --metrics labels --features classifier:{judge} --judge-classifier {judge}"
    found = run(capsys, words)[1]
    probs = load(judge)(images.read(0, 60) / 255).softmax(1)
    y = torch.from_numpy(images.labels)
    assert found["label_agreement"] == pytest.approx((probs.argmax(1) == y).double().mean().item())
    assert found["label_confidence"] == pytest.approx(probs[torch.arange(60), y].mean().item(), rel=1e-5)
    np.savez("bare.npz", arr_0=tiny_pixels(20, 0)[0])
    status, _, err = run(capsys, words.replace("a.npz", "bare.npz"))
    assert (status, "metrics: labels needs images with labels" in err) == (2, True)


def test_the_distance_moved_is_per_image_by_name(pooled, capsys, sets):  # noqa: F811
    x, y = tiny_pixels(60, 0)
    moved = x.astype(int)
    moved[3] = np.where(moved[3] < 128, moved[3] + 51, moved[3] - 51)  # 0.2 in every pixel
    np.savez(sets / "moved.npz", arr_0=moved.astype(np.uint8), arr_1=y)
    words = "quality --images moved.npz --metrics moved --originals a.npz --features inception"
    found = run(capsys, words)[1]
    norm = 0.2 * x[0].size ** 0.5
    assert found["moved_max"] == pytest.approx(norm, rel=1e-6)
    assert found["moved_mean"] == pytest.approx(norm / 60, rel=1e-6)
    np.savez(sets / "fewer.npz", arr_0=x[:50], arr_1=y[:50])
    np.savez(sets / "larger.npz", arr_0=np.zeros((60, 20, 20, 3), np.uint8))
    for name, message in (("fewer", "has no image called"), ("larger", "originals: 20x20, but the images are 16x16")):
        status, _, err = run(capsys, words.replace("--originals a.npz", f"--originals {name}.npz"))
        assert (status, message in err) == (2, True)


def test_few_images_are_said_on_the_line(pooled, capsys):  # noqa: F811
    assert main([*f"{QUALITY} --metrics fid,prc".split(), "--device", "cpu"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "N is few" not in first  # 60 images, five for each of 12 features
    assert second.endswith("; N is few: it means something from 1,000 on")


def test_the_least_number_follows_the_features():
    assert few_images(["fid", "kid", "moved"], 2048, 10_000, None) == {"fid": 10_240}
    assert few_images(["fid", "kid"], 2048, 50_000, 100) == {"fid": 10_240, "kid": 200}
    assert few_images(["is"], 2048, 5000, 10) == {}  # it has no reference


def test_the_distance_of_few_images_stands_beside_that_of_real_ones(monkeypatch, capsys, sets):  # noqa: F811
    sheet(monkeypatch, {"inception": named("inception")})
    x, _ = tiny_pixels(30, 5)
    np.savez(sets / "few.npz", arr_0=x)
    found = run(capsys, "quality --images few.npz --reference b.npz")[1]
    assert 0 < found["frechet_floor"] < found["frechet"]
    assert "frechet_floor" not in run(capsys, QUALITY)[1]  # 60 are enough for 12 features


def test_every_metric_says_what_it_rewards_and_the_page_says_the_same():
    page = (ROOT / "docs" / "evaluate.md").read_text()
    for row in explained():
        assert all(row.values())
        assert (
            f"| `{row['metric']}` | {row['what it is']} | {row['rewards']} | {row['fooled by']} | {row['from N']} |"
            in page
        )


def test_explain_prints_it(pooled, capsys):  # noqa: F811
    assert main([*f"{QUALITY} --explain".split(), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for metric in METRICS.values():
        assert f"{metric.name}: " in printed
        assert f"  fooled by {metric.fooled_by}" in printed


def test_the_sheet_against_statistics_is_what_statistics_can_give(monkeypatch, capsys):
    sheet(monkeypatch, {"inception": named("inception")})
    assert run(capsys, "statistics --images b.npz --out stats.npz")[0] == 0
    found = run(capsys, "quality --images a.npz --reference stats.npz --metrics all")[1]
    assert found["metrics"] == ["fid", "sfid"]
    assert "stats.npz holds statistics only" in found["left_out"]["kid"]


def test_the_sheet_of_few_images_is_without_the_score_of_single_ones(monkeypatch, capsys, sets):  # noqa: F811
    sheet(monkeypatch, {"inception": named("inception")})
    np.savez(sets / "few.npz", arr_0=tiny_pixels(12, 5)[0])
    found = run(capsys, "quality --images few.npz --reference b.npz --metrics all")[1]
    assert "is needs 2 images or more in each of its 10 splits" in found["left_out"]["is"]
    assert {"fid", "kid", "prc", "density-coverage"} <= set(found["metrics"])
