"""python -m eval: results on stdout, one line and status 2 for bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from eval.cli import main
from robust_models import Description, RobustClassifier, open_images, save
from robust_models.checkpoints.flags import Source
from robust_models.datasets.stores import SetStore
from robust_models.metrics import frechet_distance, read_statistics

CLASSES = ("airplane", "cat", "dog", "ship")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """model and other.safetensors (4 classes, 16 px), test.npz (labels: the model's predictions), a.npz, b.npz."""
    root = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        model = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, image_size=16))
        save(model, root / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    for name, high in (("a", 256), ("b", 200)):
        np.savez(root / f"{name}.npz", arr_0=rng.integers(0, high, (80, 16, 16, 3), dtype=np.uint8))
    pixels = open_images(root / "a.npz").read(0, 30)
    torch.manual_seed(0)
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, image_size=16)).eval()
    with torch.no_grad():
        y = model(pixels.float() / 255).argmax(1).numpy()
    np.savez(root / "test.npz", arr_0=pixels.numpy().transpose(0, 2, 3, 1), arr_1=y, lossless=np.ones(30, bool))
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(capsys, *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def robust(folder: Path, *more: object) -> list[object]:
    paths = ["robust", "--ckpt", folder / "model.safetensors", "--data", folder / "test.npz"]
    return [*paths, "--eps", 0.05, "--steps", 2, "--device", "cpu", *more]


def quality(folder: Path, *more: object) -> list[object]:
    sets = ["quality", "--images", folder / "a.npz", "--reference", folder / "b.npz"]
    return [*sets, "--features", f"classifier:{folder / 'model.safetensors'}", "--device", "cpu", *more]


def test_robust_json(folder, capsys):
    status, out, err = run(capsys, *robust(folder, "--restarts", 2, "--json"))
    assert status == 0
    result = json.loads(out)
    assert (result["n"], result["clean_accuracy"]) == (30, 1.0)
    assert 0 <= result["interval"][0] <= result["robust_accuracy"] <= result["interval"][1] <= 1
    assert result["clean_interval"][1] == 1
    expected = {"norm": "l2", "eps": 0.05, "attack": "pgd", "steps": 2, "step_size": 0.0625, "restarts": 2, "seed": 0}
    assert {key: result[key] for key in expected} == expected
    assert result["precision"] == "fp32"
    assert len(result["checkpoint"]["sha256"]) == 64
    assert "attack 2/2" in err


def test_robust_in_words_says_how_many(folder, capsys):
    status, out, _ = run(capsys, *robust(folder, "--limit", 7, "--batch_size", 3))
    assert status == 0
    assert "N = 7 (the first of 30)" in out
    assert "PGD-2 of step 0.0625, 1 restart(s), fp32" in out


def test_class_folders_are_matched_by_name_not_by_order(folder, tmp_path, capsys):
    with np.load(folder / "test.npz") as arrays:
        pixels, y = arrays["arr_0"], arrays["arr_1"]
    label = int(np.bincount(y).argmax())
    (tmp_path / CLASSES[label]).mkdir()
    for i in np.flatnonzero(y == label):
        Image.fromarray(pixels[i]).save(tmp_path / CLASSES[label] / f"{i}.png")
    assert json.loads(run(capsys, *robust(folder, "--data", tmp_path, "--json"))[1])["clean_accuracy"] == 1
    (tmp_path / CLASSES[label]).rename(tmp_path / "unicorn")
    status, _, err = run(capsys, *robust(folder, "--data", tmp_path))
    assert (status, "class 'unicorn' is none of the classifier's 4 classes" in err) == (2, True)


def test_same_seed_same_result_whatever_the_batch_size(folder, capsys):
    results = [json.loads(run(capsys, *robust(folder, "--json", "--batch-size", size))[1]) for size in (4, 250)]
    assert results[0]["robust_accuracy"] == results[1]["robust_accuracy"]


def test_a_yaml_config_and_flags_over_it(folder, tmp_path, capsys):
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(f"ckpt: {folder}/model.safetensors\ndata: test.npz\neps: 8/255\nnorm: linf\nsteps: 50\n")
    status, out, err = run(capsys, "robust", "--config", recipe, "--steps", 10, "--dry-run")
    assert (status, err) == (0, "")
    resolved = yaml.safe_load(out)
    assert (resolved["eps"], resolved["steps"], resolved["random_start"]) == (8 / 255, 10, True)


def test_quality_json(folder, capsys):
    status, out, _ = run(capsys, *quality(folder, "--json"))
    assert status == 0
    result = json.loads(out)
    assert (result["n_images"], result["n_reference"], result["dim"]) == (80, 80, 128)
    assert result["features"] == f"classifier:{folder / 'model.safetensors'}"
    assert result["frechet"] > 0
    assert "fid" not in result
    assert len(result["checkpoint"]["sha256"]) == 64


def test_only_the_fid_is_called_fid(folder, capsys):
    status, out, _ = run(capsys, *quality(folder))
    assert status == 0
    assert out.startswith("Frechet distance in classifier:")
    assert "FID" not in out
    assert "N = 80" in out


def test_the_fid_is_called_fid(folder, capsys, monkeypatch):
    class BrightestPixels:
        name, dim, protocol, image_size, is_fid = "inception", 3, "pytorch-fid", None, True
        spatial_dim = num_classes = None
        source = Source("weights.pth", "67")

        def __call__(self, x_u8: torch.Tensor) -> torch.Tensor:
            return x_u8.float().flatten(2).amax(2)

        def with_spatial(self, x_u8: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self(x_u8), None

    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: BrightestPixels())
    _, out, _ = run(capsys, *quality(folder, "--json"))
    result = json.loads(out)
    assert result["fid"] == result["frechet"] > 0
    assert result["weights"] == {"name": "weights.pth", "sha256": "67"}
    _, out, _ = run(capsys, *quality(folder))
    assert out.startswith("FID, the Frechet distance in inception (3-d, protocol pytorch-fid): ")


def test_a_set_is_at_distance_zero_from_itself(folder, capsys):
    result = json.loads(run(capsys, *quality(folder, "--reference", folder / "a.npz", "--json"))[1])
    assert result["frechet"] == pytest.approx(0, abs=1e-9)


def test_batch_size_does_not_change_the_distance(folder, capsys):
    found = [json.loads(run(capsys, *quality(folder, "--json", "--batch-size", size))[1]) for size in (1, 80)]
    assert found[0]["frechet"] == pytest.approx(found[1]["frechet"], rel=1e-5)  # the network's float32 rounding


def test_stored_statistics_stand_for_their_images(folder, tmp_path, capsys):
    features = f"classifier:{folder / 'model.safetensors'}"
    stored = tmp_path / "b_stats.npz"
    words = ["statistics", "--images", folder / "b.npz", "--features", features, "--out", stored]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "128 features" in out
    assert "N = 80" in out
    direct = json.loads(run(capsys, *quality(folder, "--json"))[1])
    through_file = json.loads(run(capsys, *quality(folder, "--reference", stored, "--json"))[1])
    assert through_file["frechet"] == pytest.approx(direct["frechet"], rel=1e-12)
    assert through_file["n_reference"] == 80
    found = read_statistics(stored)
    assert found is not None
    assert frechet_distance(found, found) == pytest.approx(0, abs=1e-9)

    moved = tmp_path / "renamed.safetensors"
    moved.write_bytes((folder / "model.safetensors").read_bytes())
    assert run(capsys, *quality(folder, "--reference", stored, "--features", f"classifier:{moved}"))[0] == 0
    other = f"classifier:{folder / 'other.safetensors'}"
    status, _, err = run(capsys, *quality(folder, "--reference", stored, "--features", other))
    assert status == 2
    assert f"statistics of {features}, but --features is {other}" in err


def test_foreign_statistics(folder, tmp_path, capsys):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(128), sigma=np.eye(128))
    status, out, _ = run(capsys, *quality(folder, "--reference", tmp_path / "foreign.npz"))
    assert status == 0
    assert "against N = unknown" in out
    np.savez(tmp_path / "pool3.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    status, _, err = run(capsys, *quality(folder, "--reference", tmp_path / "pool3.npz"))
    assert status == 2
    assert "statistics of 2048 features" in err


BAD_ROBUST = [
    (["--eps", -1], "eps: input should be greater than or equal to 0; got -1"),
    (["--eps", 8, "--norm", "linf"], "did you mean 8/255"),
    (["--norm", "l7"], "norm: 'l7' is none of l2, linf"),
    (["--attack", "fgsm"], "attack: 'fgsm' is none of pgd, apgd, autoattack"),
    (["--limit", 0], "limit: input should be greater than or equal to 1; got 0"),
    (["--restarts", 3, "--random-start", "false"], "restarts: 3 runs without a random start"),
    (["--restart", 2], "--restart: no such flag; did you mean --restarts?"),
    (["--ckpt", "absent"], "ckpt: no file absent"),
    (["--data", "absent.npz"], "absent.npz: no such file"),
    (["--config", "absent.yaml"], "--config: no file absent.yaml"),
    (["--device", "abacus"], "device: 'abacus' cannot be used here"),
]


@pytest.mark.parametrize(("words", "message"), BAD_ROBUST, ids=lambda value: str(value)[:30])
def test_bad_robust_is_one_line_and_status_2(folder, capsys, words, message):
    status, out, err = run(capsys, *robust(folder, *words))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


BAD_QUALITY = [
    (["--images", "absent"], "absent: no such file or folder"),
    (["--features", "resnet"], "features: 'resnet' is none of"),
    (["--weights", "w.pth"], "weights: belongs to the Inception network"),
]


@pytest.mark.parametrize(("words", "message"), BAD_QUALITY, ids=lambda value: str(value)[:30])
def test_bad_quality_is_one_line_and_status_2(folder, capsys, words, message):
    status, out, err = run(capsys, *quality(folder, *words))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_images_that_do_not_fit(folder, tmp_path, capsys):
    np.savez(tmp_path / "labelled.npz", arr_0=np.zeros((3, 32, 32, 3), np.uint8), arr_1=np.arange(3))
    status, out, _ = run(capsys, *robust(folder, "--data", tmp_path / "labelled.npz"))
    assert (status, "images of 32 px, resized inside the classifier to its 16 px" in out) == (0, True)
    np.savez(tmp_path / "labelled.npz", arr_0=np.zeros((3, 16, 16, 3), np.uint8), arr_1=np.arange(3) + 2)
    status, _, err = run(capsys, *robust(folder, "--data", tmp_path / "labelled.npz"))
    assert (status, "labels run from 2 to 4" in err) == (2, True)
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((3, 32, 32, 3), np.uint8))
    status, _, err = run(capsys, *quality(folder, "--images", tmp_path / "large.npz"))
    assert (status, "images are 32x32; classifier:" in err) == (2, True)
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, 16, 16, 3), np.uint8))
    status, _, err = run(capsys, *quality(folder, "--images", tmp_path / "one.npz"))
    assert (status, "needs at least 2 in each set" in err) == (2, True)


def test_statistics_do_not_overwrite_their_images(folder, capsys):
    before = (folder / "a.npz").read_bytes()
    features = f"classifier:{folder / 'model.safetensors'}"
    words = ["statistics", "--images", folder / "a.npz", "--features", features, "--out", folder / "a.npz"]
    status, _, err = run(capsys, *words)
    assert (status, "is the image set itself" in err) == (2, True)
    assert (folder / "a.npz").read_bytes() == before


def test_measurements_are_named(capsys):
    assert run(capsys)[0] == 2
    status, _, err = run(capsys, "robst")
    assert (status, err) == (2, "error: robst: no such measurement; did you mean robust?\n")


@pytest.mark.parametrize("limit", [1, 5, 24])
def test_a_limit_reads_only_the_images_that_it_names(folder, tmp_path, monkeypatch, capsys, limit):
    rng = np.random.default_rng(1)
    for i in range(24):
        place = tmp_path / "test" / CLASSES[i % 3] / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place)
    read: list[int] = []
    of_store = SetStore.read
    monkeypatch.setattr(SetStore, "read", lambda self, numbers: read.extend(numbers) or of_store(self, numbers))
    ckpt, data = folder / "model.safetensors", tmp_path / "test"
    words = ["robust", "--ckpt", ckpt, "--data", data, "--eps", "0", "--limit", limit, "--json"]
    assert main([str(word) for word in words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n"], summary["data_n"]) == (limit, 24)
    assert len(read) == limit
