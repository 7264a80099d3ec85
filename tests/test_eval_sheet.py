"""`eval robust` beyond one ball: several norms, calibration, corrupted images, images of another kind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.cli import main
from eval.robust.balls import find_balls, in_order, like
from eval.robust.calibration import expected_calibration_error, fit_temperature, measure_calibration
from eval.robust.corruptions import BENCHMARK, open_corruptions
from eval.robust.detection import SCORES, auroc, detection
from eval.robust.seeded_pgd import SeededPGD
from eval.robust.stages import Ball
from robust_models import UserError, save
from robust_models.labels import CIFAR10_CLASSES
from robust_models.threat import ThreatModel
from tests.tiny import tiny_classifier, tiny_pixels

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """model.safetensors, test.npz of 24 images with the model's own labels, and other.npz."""
    root = tmp_path_factory.mktemp("sheet")
    torch.manual_seed(0)
    model = tiny_classifier().train()
    pixels, _ = tiny_pixels(24, 0)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(30):  # batch norm has seen the images, without which one class would take them all
            model(x)
        y = model.eval()(x).argmax(1).numpy()
    assert len(np.unique(y)) > 1
    save(model, root / "model.safetensors")
    np.savez(root / "test.npz", arr_0=pixels, arr_1=y)
    np.savez(root / "other.npz", arr_0=255 - pixels[:10])
    write_corruptions(root / "c", pixels, y)
    return root


def write_corruptions(folder: Path, pixels: np.ndarray, y: np.ndarray, names: tuple[str, ...] = BENCHMARK) -> None:
    """The published layout; at severity s every pixel is moved s - 1 of 16 grey levels towards grey."""
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(y, 5))
    for name in names:
        x = pixels.astype(np.float64)
        np.save(folder / f"{name}.npy", np.concatenate([x + (127 - x) * s / 16 for s in range(5)]).astype(np.uint8))


def robust(folder: Path, *more: object) -> list[str]:
    words = ["robust", "--ckpt", folder / "model.safetensors", "--data", folder / "test.npz", "--steps", 2]
    return [str(word) for word in [*words, "--device", "cpu", *more]]


def measured(folder: Path, capsys, *more: object) -> dict:
    assert main(robust(folder, *more, "--json")) == 0
    return json.loads(capsys.readouterr().out)


# -------------------------------------------------------------------------------------------------------- several norms


def test_each_norm_of_several_is_as_it_is_alone(folder, capsys):
    together = measured(folder, capsys, "--threats", "l2:0.02,linf:1/255,l2:0.05,l1:0.4")
    alone = {
        norm: measured(folder, capsys, "--norm", norm, "--eps", eps)["results"]
        for norm, eps in (("l2", "0.02,0.05"), ("linf", "1/255"), ("l1", "0.4"))
    }
    timeless = [{k: v for k, v in result.items() if k != "wall_s"} for result in together["results"]]
    expected = [{k: v for k, v in result.items() if k != "wall_s"} for results in alone.values() for result in results]
    assert timeless == expected
    assert together["norm"] == ["l2", "linf", "l1"]
    accuracies = [result["robust_accuracy"] for result in together["results"]]
    assert together["worst_case"]["robust_accuracy"] <= min(accuracies) < together["clean_accuracy"]


def test_the_worst_case_is_of_images_not_of_shares(folder, capsys, monkeypatch):
    """An attack that breaks the even images in l2 and the odd ones in linf leaves half in each ball, none in both."""
    with np.load(folder / "test.npz") as arrays:
        of_other = {
            int(c): torch.from_numpy(arrays["arr_0"][arrays["arr_1"] != c][0] / 255) for c in set(arrays["arr_1"])
        }

    def breaks(self, _model, x, y, index):
        others = torch.stack([of_other[label] for label in y.tolist()]).permute(0, 3, 1, 2).float()
        mine = index % 2 == (self.attack.norm == "linf")
        return torch.where(mine.view(-1, 1, 1, 1), others, x)

    monkeypatch.setattr(SeededPGD, "__call__", breaks)
    found = measured(folder, capsys, "--threats", "l2:99,linf:1")
    assert [result["robust_accuracy"] for result in found["results"]] == [0.5, 0.5]
    assert found["worst_case"]["robust_accuracy"] == 0


@pytest.mark.parametrize("stop", [1, 3, 6, 9])
def test_several_norms_and_corruptions_go_on_where_they_were_stopped(folder, tmp_path, capsys, monkeypatch, stop):
    more = ["--threats", "l2:0.05,linf:1/255", "--corruptions", folder / "c", "--batch-size", 5]
    whole = measured(folder, capsys, *more)
    more += ["--state", tmp_path / "state.json"]
    calls = iter(range(1, 10**6))
    with monkeypatch.context() as patch:
        real = SeededPGD.__call__

        def stopped(self, *args):
            if next(calls) == stop:
                raise KeyboardInterrupt
            return real(self, *args)

        patch.setattr(SeededPGD, "__call__", stopped)
        assert main(robust(folder, *more)) == 130
    assert "of 78 passes over the images are done" in capsys.readouterr().err
    resumed = measured(folder, capsys, *more)
    assert without_times(resumed) == without_times(whole)
    monkeypatch.setattr(SeededPGD, "__call__", None)
    assert without_times(measured(folder, capsys, *more)) == without_times(whole)


def without_times(found):
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if key not in ("wall_s", "images_per_s")}
    return [without_times(one) for one in found] if isinstance(found, list) else found


def test_a_state_of_an_earlier_release_is_taken_up(folder, tmp_path, capsys):
    more = ["--eps", "0.02,0.05", "--state", tmp_path / "state.json"]
    whole = measured(folder, capsys, *more)
    content = json.loads((tmp_path / "state.json").read_text())
    for stage in content["stages"]:
        del stage["n"], stage["total"]
    del content["fingerprint"]["corruptions"]
    (tmp_path / "state.json").write_text(json.dumps(content))
    assert main(robust(folder, *more, "--json")) == 0
    out, err = capsys.readouterr()
    assert "state: all is done" in err
    assert without_times(json.loads(out)) == without_times(whole)


def test_other_corruptions_are_another_run(folder, tmp_path, capsys):
    pixels, y = (np.load(folder / "test.npz")[name] for name in ("arr_0", "arr_1"))
    write_corruptions(tmp_path / "c", 255 - pixels, y)
    more = ["--eps", 0, "--state", tmp_path / "state.json", "--corruptions"]
    measured(folder, capsys, *more, folder / "c")
    assert main(robust(folder, *more, tmp_path / "c")) == 2
    assert "belongs to another run: corruptions was" in capsys.readouterr().err


BAD_THREATS = {
    "l2": "'l2' is not NORM:EPS",
    "l2:,l1:3": "'l2:' is not NORM:EPS",
    "l2:": "input should be NORM:EPS",
    "0.5": "input should be NORM:EPS",
    "l2:nan": "'l2:nan' has no radius",
    "l2:-1": "eps: -1.0 is less than 0",
    "linf:8": "did you mean 8/255",
    "l7:1": "norm: 'l7' is none of l2",
    "l2:1/0": "'l2:1/0' is not NORM:EPS",
    "l2:0.5,,l1:12": "'' is not NORM:EPS",
    "l2:0.5;linf:8/255": "'l2:0.5;linf:8/255' is not NORM:EPS",
    "own": "the checkpoint states no threat model",
}


@pytest.mark.parametrize(("text", "message"), BAD_THREATS.items())
def test_threats_that_cannot_be_are_one_line(folder, capsys, text, message):
    assert main(robust(folder, "--threats", text)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("more", [["--eps", 0.5], ["--norm", "linf"]])
def test_threats_and_eps_are_one_too_many(folder, capsys, more):
    assert main(robust(folder, "--threats", "l2:0.5", *more)) == 2
    assert "threats: name norms and radii themselves" in capsys.readouterr().err


def test_a_norm_without_a_radius_is_told_so(folder, capsys):
    assert main(robust(folder, "--norm", "linf")) == 2
    assert "eps: norm=linf needs a radius" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "side", "expected"),
    [
        (None, 32, {"l2": 0.5, "linf": 8 / 255, "l1": 12}),
        (("l2", 0.5), 32, {"l2": 0.5, "linf": 8 / 255, "l1": 12}),
        (("l2", 0.25), 32, {"l2": 0.25, "linf": 4 / 255, "l1": 6}),
        (("linf", 4 / 255), 32, {"linf": 4 / 255, "l2": 0.25, "l1": 6}),
        (("linf", 4 / 255), 224, {"linf": 4 / 255, "l2": 1.75, "l1": 294}),
        (("l2", 3.5), 224, {"l2": 3.5, "linf": 8 / 255, "l1": 588}),
    ],
)
def test_like_radii_are_the_usual_ones_scaled(trained, side, expected):
    found = like(trained and ThreatModel(*trained), 3 * side**2)
    assert list(found) == list(expected)  # its own first
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("attack", "norms"),
    [("pgd", ["linf", "l2", "l1"]), ("autoattack", ["linf", "l2", "l1"]), ("foolbox:LinfPGD", ["linf"])],
)
def test_only_norms_that_the_attack_has_are_added(attack, norms):
    balls, _ = find_balls("auto", trained=ThreatModel("linf", 8 / 255), num_pixels=3072, attack=attack)
    assert [ball.norm for ball in balls] == norms


@pytest.mark.parametrize("threats", ["own", "auto"])
def test_a_threat_model_in_another_norm_stands_alone(threats):
    balls, _ = find_balls(threats, trained=ThreatModel("fourier", 0.5), num_pixels=3072, attack="pgd")
    assert balls == [Ball("fourier", 0.5)]


def test_an_eps_of_0_is_no_threat_model():
    balls, origin = find_balls("auto", trained=ThreatModel("linf", 0.0), num_pixels=3072, attack="pgd")
    assert balls == [Ball("l2", 0.5), Ball("linf", 8 / 255), Ball("l1", 12)]
    assert origin.startswith("the usual ones")
    with pytest.raises(UserError, match="states no threat model"):
        find_balls("own", trained=ThreatModel("linf", 0.0), num_pixels=3072, attack="pgd")


def test_balls_of_a_norm_stand_together_and_grow():
    given = [Ball("linf", 0.1), Ball("l2", 2), Ball("linf", 0.05), Ball("l2", 1), Ball("l2", 2)]
    assert in_order(given) == [Ball("linf", 0.05), Ball("linf", 0.1), Ball("l2", 1), Ball("l2", 2)]


# ---------------------------------------------------------------------------------------------------------- calibration


def calibrated(n: int, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their own softmax."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=rng)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=rng).squeeze(1)


def test_labels_drawn_from_the_probabilities_are_calibrated():
    found = measure_calibration(*calibrated(40_000))
    assert found.ece < found.by_chance[1] < 0.02
    assert found.temperature == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(temperature):
    logits, y = calibrated(40_000)
    found = measure_calibration(logits * temperature, y)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.ece > 0.1 > 0.02 > found.by_chance_scaled[1] > found.ece_scaled


def test_an_error_of_closed_form():
    """All images are 80 % sure, 60 % of them rightly: 0.2 in one bin. Half of them 90 % sure too: the mean of bins."""
    sure = torch.log(torch.tensor([[0.8, 0.2]])).expand(10, 2)
    y = torch.tensor([0] * 6 + [1] * 4)
    assert expected_calibration_error(sure, y) == pytest.approx(0.2)
    surer = torch.log(torch.tensor([[0.9, 0.1]])).expand(10, 2)
    assert expected_calibration_error(torch.cat([sure, surer]), torch.cat([y, y * 0])) == pytest.approx(0.15)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_its_definition(bins, seed):
    logits, _ = calibrated(500, seed=seed)
    y = torch.randint(0, 5, (500,), generator=torch.Generator().manual_seed(seed))
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            gap = (predicted[inside] == y[inside]).double().mean() - confidence[inside].mean()
            expected += float(inside.double().mean() * gap.abs())
    assert expected_calibration_error(logits, y, bins=bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [10, 15])
def test_error_and_area_are_torchmetrics(bins):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, y = calibrated(700)
    error = functional.multiclass_calibration_error(logits.softmax(1), y, num_classes=5, n_bins=bins)
    assert expected_calibration_error(logits, y, bins=bins) == pytest.approx(float(error), abs=1e-6)
    scores, own = logits[:, 0].double(), y == 0
    area = functional.binary_auroc(scores.sigmoid(), own.long())
    assert auroc(scores[own].numpy(), scores[~own].numpy()).value == pytest.approx(float(area), abs=1e-6)


def test_the_temperature_is_where_the_derivative_vanishes():
    logits, y = calibrated(300, seed=4)
    scale = torch.tensor(1 / fit_temperature(logits, y), dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits.double() * scale, y).backward()
    assert scale.grad is not None
    assert abs(float(scale.grad)) < 1e-4


def test_chance_alone_is_called_chance():
    """Of calibrated classifiers, about 95 in 100 are below the figure that 95 % stay below."""
    below = [
        found.ece <= found.by_chance[1]
        for found in (measure_calibration(*calibrated(200, seed=seed), seed=seed) for seed in range(100))
    ]
    assert 88 <= sum(below) <= 99


# -------------------------------------------------------------------------------------------------- out of distribution


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_that_of_all_pairs(seed):
    rng = RNG(seed)
    inside, outside = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 25).astype(float)  # with ties
    pairs = inside[:, None] - outside
    assert auroc(inside, outside).value == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)


def test_sets_apart_and_sets_alike():
    x = np.arange(20.0)
    assert auroc(x + 20, x).value == 1
    assert auroc(x, x + 20).value == 0
    assert auroc(x, x).value == 0.5
    assert auroc(x + 20, x).interval == pytest.approx((1 - (1 - 0.025 ** (1 / 20)), 1))
    low, high = auroc(x, x).interval
    assert (low, high) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.0])
def test_the_interval_covers_the_area_of_two_normal_distributions(gap):
    from scipy.stats import norm

    area, rng = norm.cdf(gap / 2**0.5), RNG(int(gap))
    intervals = [auroc(rng.normal(gap, 1, 80), rng.normal(0, 1, 60)).interval for _ in range(400)]
    assert 0.92 <= np.mean([low <= area <= high for low, high in intervals]) <= 0.98


def test_scores_are_the_largest_probability_and_the_log_of_the_sum():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    assert SCORES["max_softmax"](logits).exp() == pytest.approx(logits.softmax(1).amax(1), abs=1e-6)
    assert SCORES["log_sum_exp"](logits) == pytest.approx(logits.exp().sum(1).log(), abs=1e-6)


def test_probabilities_that_round_to_one_still_have_an_order():
    """In float32 all of these are 1.0; their logarithms are not equal."""
    sure = torch.tensor([[30.0, 0.0], [25.0, 0.0], [20.0, 0.0]])
    assert detection(sure[:2], sure[2:])["max_softmax"].value == 1


def test_a_set_against_itself_is_one_half(folder, capsys):
    found = measured(folder, capsys, "--eps", 0, "--ood", folder / "test.npz")["ood"]
    assert found["auroc"] == {"max_softmax": 0.5, "log_sum_exp": 0.5}
    assert found["n"] == 24
    limited = measured(folder, capsys, "--eps", 0, "--ood", folder / "other.npz", "--limit", 7)["ood"]
    assert limited["n"] == 7


# ----------------------------------------------------------------------------------------------------- corrupted images


def test_corruptions_are_counted_by_name_and_severity(folder, capsys):
    found = measured(folder, capsys, "--eps", 0, "--corruptions", folder / "c", "--batch-size", 7)["corruptions"]
    assert found["n"] == 24
    assert list(found["accuracy"]) == found["mean_of"] == list(BENCHMARK)
    assert found["missing"] == []
    shares = np.array(list(found["accuracy"].values()))
    assert (shares[:, 0] == 1).all()  # severity 1 is the images themselves
    assert shares.mean() == pytest.approx(found["mean"])
    assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert (shares == shares[0]).all()


def test_only_the_benchmarks_own_corruptions_are_in_the_mean(tmp_path, folder, capsys):
    pixels, y = (np.load(folder / "test.npz")[name] for name in ("arr_0", "arr_1"))
    write_corruptions(tmp_path / "c", pixels, y, ("fog", "snow", "spatter"))
    assert main(robust(folder, "--eps", 0, "--corruptions", tmp_path / "c", "--limit", 5)) == 0
    out = capsys.readouterr().out
    assert "mean of 2 corruptions at 5 severities, N = 5 each; not CIFAR-10-C's mean: gaussian_noise" in out
    assert "spatter" in out


def test_labels_fit_a_classifier_with_the_classes_in_another_order(tmp_path):
    pixels, _ = tiny_pixels(10, 0)
    write_corruptions(tmp_path / "c", pixels, np.arange(10), ("fog",))
    turned = tuple(reversed(CIFAR10_CLASSES))
    assert open_corruptions(tmp_path / "c", turned).y.tolist() == list(range(9, -1, -1))
    assert open_corruptions(tmp_path / "c", tuple("abcdefghij")).y.tolist() == list(range(10))


def spoilt(name: str, array: np.ndarray):
    return lambda folder: np.save(folder / name, array)


BAD_FOLDERS = {
    "no folder": (None, "no folder"),
    "no labels": (lambda folder: (folder / "labels.npy").unlink(), "has no labels.npy"),
    "no images": (lambda folder: (folder / "fog.npy").unlink(), "has no gaussian_noise.npy and the like"),
    "labels in fives": (spoilt("labels.npy", np.zeros(12, int)), "expected a label for each image at 5 severities"),
    "labels that change": (spoilt("labels.npy", np.arange(10) % 3), "has other labels at one severity than at another"),
    "float labels": (spoilt("labels.npy", np.zeros(10)), "is float64"),
    "too many classes": (spoilt("labels.npy", np.full(10, 77)), "labels run from 77 to 77"),
    "float images": (spoilt("fog.npy", np.zeros((10, 8, 8, 3))), "is float64"),
    "too few images": (spoilt("fog.npy", np.zeros((5, 8, 8, 3), np.uint8)), r"expected uint8 \[10,H,W,3\]"),
    "channels first": (spoilt("fog.npy", np.zeros((10, 3, 8, 8), np.uint8)), r"expected uint8 \[10,H,W,3\]"),
    "objects": (spoilt("fog.npy", np.array([{}], dtype=object)), "cannot be read as .npy"),
    "not an array": (lambda folder: (folder / "fog.npy").write_bytes(b"fog"), "cannot be read as .npy"),
    "empty": (lambda folder: (folder / "labels.npy").write_bytes(b""), "cannot be read as .npy"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_folders_that_do_not_fit_are_one_line(tmp_path, spoil, message):
    pixels, _ = tiny_pixels(2, 0)
    if spoil is not None:
        write_corruptions(tmp_path / "c", pixels, np.arange(2), ("fog",))
        spoil(tmp_path / "c")
    with pytest.raises(UserError, match=f"corruptions: .*{message}") as error:
        open_corruptions(tmp_path / "c", CIFAR10_CLASSES)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ the whole of it


def test_the_sheet_in_words(folder, capsys):
    words = ["--calibration", "--ood", folder / "other.npz", "--corruptions", folder / "c"]
    assert main(robust(folder, *words)) == 0
    out = capsys.readouterr().out
    for part in (
        "clean accuracy  100.00 %",
        "at l2 eps 0.25",
        "at linf eps 0.03137 (8/255)",
        "in all of them at once",
        "balls: the usual ones for images of this size",
        "calibration error",
        "under corruption",
        "out-of-distribution AUROC",
        "log-sum-exp",
    ):
        assert part in out, part
