"""The main job on what the package brings along: VAE samples, the robust classifier, the baseline as judge."""

import json

import eval.cli
import refine.cli
from robust_models import open_images
from robust_models.images import write_npz
from robust_models.runtime.files import PRETRAINED


def frechet(images, capsys) -> float:
    reference = PRETRAINED / "cifar10-train-statistics.npz"
    features = "classifier:cifar10-standard-small"
    argv = ["quality", "--images", images, "--reference", reference, "--features", features, "--json"]
    assert eval.cli.main([str(word) for word in argv]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_images"], summary["n_reference"]) == (48, 50_000)
    assert "fid" not in summary
    return summary["frechet"]


def test_refined_samples_are_truer_to_a_class_and_nearer_to_the_real_images(tmp_path, capsys):
    before, after = tmp_path / "before.npz", tmp_path / "after.npz"
    samples = open_images(PRETRAINED / "vae-cifar10.npz")
    assert samples.labels is not None
    write_npz(before, samples.read(0, 48), samples.labels[:48])
    argv = ["--ckpt", "cifar10-l2-small", "--input", before, "--out", after, "--eps", "4", "--json"]
    assert refine.cli.main([str(word) for word in argv]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["targets"] == "given"
    assert summary["on_target_after"] > 0.9
    assert summary["confidence_after"] > summary["confidence_before"] + 0.4
    assert frechet(after, capsys) < frechet(before, capsys)
