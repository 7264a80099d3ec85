import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from robust_models import RobustClassifier, ThreatModel, UserError, embedded_names, load, save
from robust_models.classifier import Generation
from tests.tiny import tiny_classifier

X = torch.rand(2, 3, 16, 16)


def test_save_and_load_keep_logits_and_description(classifier, tmp_path):
    classifier.description = replace(
        classifier.description,
        threat_model=ThreatModel("l2", 0.5),
        recipe={"epochs": 3, "attack": {"steps": {"0.0": 1}}},
        scores={"test": {"n": 10, "clean_accuracy": 0.5}},
    )
    save(classifier, tmp_path / "c.safetensors")
    loaded = load(tmp_path / "c.safetensors")
    assert torch.equal(loaded(X), classifier(X))
    assert loaded.description == classifier.description
    assert not loaded.training


@pytest.mark.parametrize("name", embedded_names())
def test_embedded_classifiers_load_by_name_and_say_what_they_are(name):
    model = load(name)
    assert model.class_names[0] == "airplane"
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert model.description.recipe["epochs"] > 0
    assert model.description.scores


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet50", "preact_resnet18", "wide_resnet_10_1", "torchvision:resnet18"]
)
def test_every_family_gives_logits_and_features(arch):
    model = tiny_classifier(arch)
    logits, features = model(X), model.features(X)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model.head(features), logits, rtol=1e-4, atol=1e-5)


def test_the_normaliser_is_inside(classifier):
    x = (X - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(classifier(X), classifier.network(x))


def test_bf16_gives_float32_logits_near_those_of_fp32(classifier):
    exact = classifier(X)
    classifier.precision = "bf16"
    logits = classifier(X)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("preact_resnet8", "did you mean preact_resnet18"),
        ("wide_resnet_11_2", "depth: 11 is not 6n"),
        ("torchvision:resnet19", "cannot be built"),
        ("nowhere.to:found", "cannot be built"),
    ],
)
def test_an_unknown_architecture_is_named(arch, message):
    with pytest.raises(UserError, match=message):
        tiny_classifier(arch)


def test_a_checkpoint_of_another_shape_says_where(checkpoint, tmp_path):
    state = load_file(checkpoint)
    description = checkpoint_metadata(checkpoint)

    def rewritten(tensors: dict[str, torch.Tensor]) -> RobustClassifier:
        save_file(tensors, tmp_path / "other.safetensors", description)
        return load(tmp_path / "other.safetensors")

    with pytest.raises(UserError, match=r"head.weight is \[3, 5\], expected \[3, 128\]"):
        rewritten({**state, "head.weight": torch.zeros(3, 5)})
    with pytest.raises(UserError, match=r"1 tensors missing \(head.bias\), 1 unexpected \(extra\)"):
        rewritten({**{k: v for k, v in state.items() if k != "head.bias"}, "extra": torch.zeros(1)})
    save_file(state, tmp_path / "bare.safetensors")
    bare = load(tmp_path / "bare.safetensors").description
    assert bare.arch == "preact_resnet10_w16"
    assert bare.recipe["source"]["layout"].startswith("safetensors without this project's description")


def test_how_it_generates_is_written_and_read(classifier, tmp_path):
    save(classifier, tmp_path / "plain.safetensors")
    assert "generation" not in json.loads(checkpoint_metadata(tmp_path / "plain.safetensors")["bigroc"])
    assert load(tmp_path / "plain.safetensors").description.generation is None
    classifier.description = replace(classifier.description, generation=Generation(0.5, 12, -3.25, "pca"))
    save(classifier, tmp_path / "energy.safetensors")
    assert load(tmp_path / "energy.safetensors").description == classifier.description


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step_size": 0}, "step size above zero"),
        ({"step_size": "long"}, "step size above zero"),
        ({"median_energy": float("nan")}, "finite energy"),
        ({"steps": 1.5}, "steps are not a number up to 100,000"),
        ({"steps": 10**9}, "steps are not a number up to 100,000"),
        ({"start": "https://example.org/x.npz"}, "starts at none of seeds, pca, noise, images"),
        ({"other": 1}, "TypeError"),
    ],
)
def test_a_broken_record_of_generation_is_named(classifier, tmp_path, changed, message):
    save(classifier, tmp_path / "tiny.safetensors")
    entries = json.loads(checkpoint_metadata(tmp_path / "tiny.safetensors")["bigroc"])
    entries["generation"] = {"step_size": 0.5, "steps": 12, "median_energy": -3.0, **changed}
    state = load_file(tmp_path / "tiny.safetensors")
    save_file(state, tmp_path / "broken.safetensors", {"bigroc": json.dumps(entries)})
    with pytest.raises(UserError, match=f"has a broken description .*{message}"):
        load(tmp_path / "broken.safetensors")


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no file .*nothing; give a file or one of: .*cifar10-l2-small, "):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no file cifar10-l2-smal; did you mean cifar10-l2-small\?"):
        load("cifar10-l2-smal")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load(tmp_path / "page.pt")


def checkpoint_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()
