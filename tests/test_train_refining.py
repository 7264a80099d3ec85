"""What a classifier is worth as a refiner while it trains: measured as elsewhere, kept beside the most robust one."""

import numpy as np
import pytest
import torch

from refine import refine
from robust_models import UserError, load, save, to_float, to_u8
from robust_models.datasets import load_dataset
from robust_models.features import open_features
from robust_models.metrics.kernel_resampled import reference_for, resampler_for
from tests.test_train import dying_at, tiny_config
from tests.tiny import SIZE, tiny_classifier, tiny_pixels
from train.cli import main
from train.loop import train
from train.report import read_metrics
from train.state import load_state
from train.validation import ONE_PROCESS


@pytest.fixture
def root(tmp_path):
    """A generator's samples, darker than the real images, and a judge."""
    pixels, labels = tiny_pixels(30, seed=5)
    np.savez(tmp_path / "made.npz", arr_0=pixels // 2, arr_1=labels)
    np.savez(tmp_path / "unlabelled.npz", arr_0=pixels)
    np.savez(tmp_path / "other.npz", arr_0=pixels, arr_1=labels, class_names=np.array(["x", "y", "z"]))
    save(tiny_classifier(), tmp_path / "judge.safetensors")
    return tmp_path


def config_of(root, out, data, **fields):
    refining = {"images": str(root / "made.npz"), "judge": f"classifier:{root / 'judge.safetensors'}", "eps": "1"}
    given = {f"validate.refine.{name}": value for name, value in (refining | fields.pop("refine", {})).items()}
    return tiny_config(out, data, **given, **fields)


def test_the_distance_is_that_of_the_images_that_refine_gives(root, labelled_npz):
    from train.refining import Refining

    config = config_of(root, root / "run", labelled_npz, refine={"limit": "20"})
    held_out = load_dataset(str(labelled_npz), "train")[-32:]
    model = tiny_classifier()
    found = Refining.open(config, held_out, torch.device("cpu")).scores(model, ONE_PROCESS)
    judge = open_features(f"classifier:{root / 'judge.safetensors'}")
    samples = load_dataset(str(root / "made.npz"), "train")[:20]
    refined = to_u8(refine(model, to_float(samples.x_u8), samples.y, eps=1))
    reference = reference_for(judge(held_out[:20].x_u8), 20)
    expected = [resampler_for(judge(x_u8), reference).distance(np.ones(20, int)) for x_u8 in (samples.x_u8, refined)]
    assert [*found] == ["raw_kid", "refined_kid"]
    assert [*found.values()] == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-2)


def test_the_best_refiner_is_kept_beside_the_most_robust_classifier(root, labelled_npz, capsys):
    words = ["--validate.refine.images", root / "made.npz", "--validate.refine.judge"]
    words += [f"classifier:{root / 'judge.safetensors'}", "--data.path", labelled_npz, "--out", root / "run"]
    words += ["--epochs", 4, "--device", "cpu", "--data.validation", 32, "--batch-size", 16, "--attack.steps", 1]
    words += ["--config", "cifar_l2_small.yaml", "--arch", "preact_resnet10_w16", "--data.class-names", "a,b,c"]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    rows = [row for row in read_metrics(root / "run" / "metrics.jsonl") if row["kind"] == "validation"]
    distances = [row["refined_kid"] for row in rows]
    assert len(set(distances)) == 4
    assert len({row["raw_kid"] for row in rows}) == 1
    refiner = rows[distances.index(min(distances))]
    robust = max(rows, key=lambda row: (row["robust_accuracy"], row["step"]))
    for name, row in (("refiner", refiner), ("classifier", robust)):
        kept = load(root / "run" / f"{name}.safetensors", quiet=True).description.scores["validation"]
        assert kept == {key: value for key, value in row.items() if key not in ("step", "kind")}, name
    marks = {" ".join(line.split()[7:]) for line in shown.splitlines() if line.strip()[:1].isdigit()}
    assert marks - {""} in ({"best", "best refiner"}, {"best best refiner"})
    assert "kid refined" in shown
    assert f"{root / 'run' / 'refiner.safetensors'}: the best refiner; held out: " in shown


def test_a_stopped_run_goes_on_and_knows_the_best_refiner_so_far(root, labelled_npz):
    whole = train(config_of(root, root / "whole", labelled_npz))
    with dying_at(9):
        train(config_of(root, root / "parts", labelled_npz))
    parts = train(config_of(root, root / "parts", labelled_npz))
    assert whole is not None
    assert parts is not None
    assert whole["refiner_validation"] == parts["refiner_validation"]
    states = [load_state(root / name) for name in ("whole", "parts")]
    best = [state and (state.progress.best_refined, state.progress.best_refined_scores) for state in states]
    assert best[0] == best[1]
    ours, theirs = (load(root / name / "refiner.safetensors", quiet=True) for name in ("whole", "parts"))
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_without_images_nothing_is_refined_or_kept(root, labelled_npz):
    summary = train(tiny_config(root / "run", labelled_npz, epochs="1"))
    assert summary is not None
    assert "refiner" not in summary
    assert not (root / "run" / "refiner.safetensors").exists()
    assert not any("kid" in name or "frechet" in name for name in summary["validation"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": "ROOT/none.npz"}, r"validate.refine.images: ROOT/none.npz: no such file"),
        ({"images": "ROOT/unlabelled.npz"}, r"validate.refine.images: .*labels"),
        ({"images": "ROOT/other.npz"}, r"validate.refine.images: .*class 'x' is none of"),
        ({"judge": "classifier:ROOT/none.pt"}, r"validate.refine.judge: .*none.pt"),
        ({"judge": "inceptoin"}, r"validate.refine.judge: .*inceptoin"),
        (
            {"judge": "classifier:cifar10-standard-small"},
            rf"validate.refine.judge: .*32 pixels, the images have {SIZE}",
        ),
    ],
)
def test_images_and_judges_that_do_not_fit_are_named_before_the_run(root, labelled_npz, fields, message):
    refining = {name: value.replace("ROOT", str(root)) for name, value in fields.items()}
    with pytest.raises(UserError, match=message.replace("ROOT", str(root))):
        train(config_of(root, root / "run", labelled_npz, refine=refining))
    assert not (root / "run" / "config.json").exists()


def test_held_out_images_are_needed(root, labelled_npz):
    with pytest.raises(UserError, match=r"validate.refine.images: needs held-out images; set data.validation above 0"):
        config_of(root, root / "run", labelled_npz, **{"data.validation": "0"})
