"""Texts as classes: prompts and templates, image-text models of ours and of open_clip, and what is made with them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import refine.cli
from robust_models import Description, Normalizer, RobustClassifier, load, open_images, save
from robust_models.architectures.text_tower import TextTower
from robust_models.checkpoints.ours import WORDS, read_safetensors, reproducible_bytes
from robust_models.checkpoints.words.prompts import CONTRAST, Texts
from robust_models.checkpoints.words.two_towers import TwoTowers, save_two_towers
from robust_models.errors import UserError
from tests.tiny import SIZE, tiny_pixels

VOCABULARY = ("a", "of", "photo", "red", "green", "ship", "frog", "on", "blue")
D = 12


def two_towers(activation: str = "relu") -> TwoTowers:
    torch.manual_seed(0)
    names = tuple(map(str, range(D)))
    described = Description(
        "preact_resnet10_w8", names, SIZE, activation, normalizer=Normalizer((0.4,) * 3, (0.3,) * 3)
    )
    return TwoTowers(
        RobustClassifier.from_description(described).eval(), TextTower(VOCABULARY, D, width=32).eval(), 20.0
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.safetensors"
    save_two_towers(two_towers(), path)
    return path


def x(n: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5))


# Texts


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("a red ship", None, None), {"a red ship": ("a red ship",), CONTRAST: (CONTRAST,)}),
        (("a ship | a frog", None, None), {"a ship": ("a ship",), "a frog": ("a frog",)}),
        ((None, ["ship", "frog"], None), {"ship": ("a photo of a ship",), "frog": ("a photo of a frog",)}),
        ((None, ["ship", "frog"], "{}|a {}"), {"ship": ("ship", "a ship"), "frog": ("frog", "a frog")}),
        (("red", ["ship"], "a {}"), {"red": ("red",), "ship": ("a ship",)}),
    ],
)
def test_prompts_and_class_names_are_classes(asked, expected):
    texts = Texts.of(*asked)
    assert dict(zip(texts.names, texts.texts, strict=True)) == expected


def test_templates_may_be_the_lines_of_a_file(tmp_path):
    (tmp_path / "templates.txt").write_text("a {}\n\na photo of a {}\n")
    assert Texts.of(None, ["ship", "frog"], str(tmp_path / "templates.txt")).texts[0] == ("a ship", "a photo of a ship")


BAD_TEXTS = {
    "nothing": ((None, None, None), "prompt: is required: this is an image-text model, whose classes are texts"),
    "empty": ((" | ", None, None), "prompt: ' | ' says nothing; write what the image is to show"),
    "no place": ((None, ["ship"], "a photo"), "template: 'a photo' has no {} where the name of the class is to stand"),
    "no names": (("ship", None, "a {}"), "template: 'a {}' is for class names (--class-names), which are not given"),
    "no templates": ((None, ["ship"], "|"), "template: '|' has no {} where the name of the class is to stand"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_texts_that_make_no_classes_are_one_line(case):
    asked, message = BAD_TEXTS[case]
    with pytest.raises(UserError) as caught:
        Texts.of(*asked)
    assert str(caught.value).startswith(message)


# Our own


def test_a_text_means_the_same_beside_any_others():
    tower = two_towers().text
    with torch.no_grad():
        alone = tower(tower.tokens(["a red ship"]))
        among = tower(tower.tokens(["a photo of a green frog on blue", "a red ship", "frog"]))[1:2]
    torch.testing.assert_close(alone, among)


def test_the_order_of_words_counts():
    tower = two_towers().text
    with torch.no_grad():
        one, other = tower(tower.tokens(["red ship on blue", "blue ship on red"]))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red shi", "prompt: 'a red shi': this model was not trained on the word 'shi'; did you mean ship?"),
        ("xylophone", "this model was not trained on the word 'xylophone'; it knows a, of, photo, red"),
        ("?!", "prompt: '?!' has 0 words; this model reads 1 to 16"),
        ("a " * 17, "has 17 words; this model reads 1 to 16"),
    ],
)
def test_a_text_that_cannot_be_read_is_one_line(ours, text, message):
    with pytest.raises(UserError) as caught:
        load(ours, prompt=text)
    assert message in str(caught.value)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_logits_are_the_scaled_cosines_of_image_and_texts(tmp_path, activation, capsys):
    """Of a class of several texts, with the mean of their directions."""
    model = two_towers(activation)
    save_two_towers(model, tmp_path / "words.safetensors")
    found = load(tmp_path / "words.safetensors", class_names=["ship", "frog"], template="a {}|a photo of a {}")
    assert found.class_names == ("ship", "frog")
    assert capsys.readouterr().err == ""  # nothing is assumed
    with torch.no_grad():
        text = model.text(model.text.tokens(["a ship", "a photo of a ship", "a frog", "a photo of a frog"]))
        rows = F.normalize(F.normalize(text, dim=1).unflatten(0, (2, 2)).mean(1), dim=1)
        expected = 20 * F.normalize(model.image(x()), dim=1) @ rows.T
        torch.testing.assert_close(found(x()), expected)


def test_with_its_texts_it_is_a_classifier_like_others(ours, tmp_path):
    """Saved, it needs the texts no more; it has features, and a gradient."""
    model = load(ours, prompt="a red ship")
    save(model, tmp_path / "ship.safetensors")
    again = load(tmp_path / "ship.safetensors")
    assert again.class_names == ("a red ship", CONTRAST)
    assert torch.equal(again(x()), model(x()))
    assert again.features(x()).shape == (3, D)
    inputs = x().requires_grad_()
    (gradient,) = torch.autograd.grad(again(inputs).sum(), inputs)
    assert gradient.abs().sum() > 0


def broken(file: Path, tmp_path: Path, change) -> Path:
    tensors, metadata = read_safetensors(file)
    entries = json.loads(metadata[WORDS])
    change(entries, tensors)
    out = tmp_path / "broken.safetensors"
    out.write_bytes(reproducible_bytes(tensors, {WORDS: json.dumps(entries), "format": "pt"}))
    return out


BREAKS = {
    "newer": (lambda entries, _: entries.update(version=2), "is of a newer version of the format; update bigroc"),
    "no words": (lambda entries, _: entries["text"].update(words=[]), "words is 0, not 1 to 100000"),
    "huge": (lambda entries, _: entries["text"].update(width=10**9), "width is 1000000000, not 1 to 4096"),
    "scale": (lambda entries, _: entries.update(scale=-1), "the scale is -1.0"),
    "no text": (lambda entries, _: entries.pop("text"), "is a broken image-text model (KeyError: 'text')"),
    "not finite": (lambda _, tensors: tensors["text.places"].fill_(math.nan), "its text network has NaN or infinite"),
    "missing": (
        lambda _, tensors: tensors.pop("image.conv1.weight", tensors.popitem()),
        "is a broken image-text model",
    ),
    "code": (lambda entries, _: entries["image"].update(arch="os:system"), "which runs that code"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_file_is_one_line(ours, tmp_path, case):
    change, message = BREAKS[case]
    with pytest.raises(UserError) as caught:
        load(broken(ours, tmp_path, change), prompt="ship")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_image_text_models_read_texts(checkpoint, ours, tmp_path):
    with pytest.raises(
        UserError, match=r"prompt: 'a ship', but .* reads no texts; give an image-text model, open_clip:"
    ):
        load(checkpoint, prompt="a ship")
    with pytest.raises(UserError, match="prompt: is required: this is an image-text model"):
        load(ours)
    with pytest.raises(UserError, match=r"head: does not apply to .*, whose texts are its head"):
        load(ours, prompt="ship", head=tmp_path / "head.pt")


def test_it_does_not_replace_another_file(tmp_path):
    (tmp_path / "mine.safetensors").write_text("a letter")
    with pytest.raises(UserError, match="image-text model of this project"):
        save_two_towers(two_towers(), tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text() == "a letter"


# open_clip's

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {
    "vit": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 64},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "pooled": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "pool_type": "avg"},
}
ARCHS = {"vit": "clip_vit_p8_i32_w64_l2_d16", "resnet": "clip_resnet_b1_1_1_1_i32_w8_d16", "pooled": "open_clip:pooled"}


@pytest.fixture
def open_clip(tmp_path, monkeypatch):
    """The library, which knows our small models by name."""
    library = pytest.importorskip("open_clip")
    from open_clip import factory

    known = {
        name: {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": name == "vit"}
        for name, vision in VISION.items()
    }
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS, **known})
    monkeypatch.chdir(tmp_path)
    return library


def written(library, name: str, form: str):
    """The model with random weights, and what --ckpt calls it."""
    torch.manual_seed(3)
    model = library.create_model(name, load_weights=False).eval()
    if form == "trainer":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "weights.pt")
        return model, f"open_clip:{name}:weights.pt"
    folder = Path(f"{name}-folder")
    folder.mkdir()
    config = library.get_model_config(name)
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "size": 32}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / "open_clip_model.safetensors").write_bytes(reproducible_bytes(tensors, {"format": "pt"}))
    return model, f"open_clip:{folder}"


@pytest.mark.parametrize("form", ["trainer", "folder"])
@pytest.mark.parametrize("name", VISION)
def test_its_models_classify_as_they_do_there(open_clip, tmp_path, name, form):
    model, ckpt = written(open_clip, name, form)
    if (name, form) == ("pooled", "folder"):
        with pytest.raises(
            UserError, match="neither a ViT or ResNet of CLIP nor that of a model which open_clip knows"
        ):
            load(ckpt, prompt="a red ship at sea")
        return
    found = load(ckpt, prompt="a red ship at sea")
    assert found.description.arch == ARCHS[name]
    assert found.image_size == 32
    tokens = open_clip.get_tokenizer(name)(["a red ship at sea", CONTRAST])
    mean, std = (
        ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) if form == "folder" else (model.visual.image_mean, model.visual.image_std)
    )
    images = (x(size=32) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = (
            model.logit_scale.exp()
            * model.encode_image(images, normalize=True)
            @ model.encode_text(tokens, normalize=True).T
        )
        torch.testing.assert_close(found(x(size=32)), expected, rtol=1e-4, atol=1e-4)
    save(found, tmp_path / "ours.safetensors")
    torch.testing.assert_close(load(tmp_path / "ours.safetensors")(x(size=32)), found(x(size=32)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ours_is", ["the encoder alone", "under visual."])
def test_a_robust_encoder_takes_its_texts_from_the_model_it_was_trained_from(open_clip, ours_is):
    """As FARE and TeCoA publish theirs: image encoders that were fine-tuned beside texts that stayed."""
    model, ckpt = written(open_clip, "vit", "trainer")
    robust = {name: 1.1 * tensor for name, tensor in model.visual.state_dict().items()}
    prefix = "" if ours_is == "the encoder alone" else "visual."
    torch.save({f"{prefix}{name}": tensor for name, tensor in robust.items()}, "fare.pt")
    found = load("fare.pt", head=ckpt, class_names=["ship", "frog"], quiet=True)
    model.visual.load_state_dict(robust)
    tokens = open_clip.get_tokenizer("vit")(["a photo of a ship", "a photo of a frog"])
    images = (x(size=32) - torch.tensor(model.visual.image_mean).view(3, 1, 1)) / torch.tensor(
        model.visual.image_std
    ).view(3, 1, 1)
    with torch.no_grad():
        logits = model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T
        torch.testing.assert_close(found(x(size=32)), model.logit_scale.exp() * logits, rtol=1e-4, atol=1e-4)


BAD_NAMES = {
    "unknown": ("open_clip:ViT-B-33:weights.pt", "ckpt: open_clip:ViT-B-33:weights.pt: 'ViT-B-33' is none of"),
    "no weights": ("open_clip:vit", "ckpt: open_clip:vit: no file ''; name a file of weights, open_clip:vit:FILE"),
    "no file": ("open_clip:vit:weights.pt", "ckpt: open_clip:vit:weights.pt: no file 'weights.pt'; name a file"),
    "no config": (
        "open_clip:empty",
        "ckpt: open_clip:empty: empty has no open_clip_config.json; give the model's name",
    ),
    "other": ("open_clip:resnet:vit.pt", "ckpt: vit.pt does not fit the model: it lacks "),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_model_that_is_not_there_is_one_line(open_clip, case):
    name, message = BAD_NAMES[case]
    Path("empty").mkdir()
    written(open_clip, "vit", "trainer")
    Path("weights.pt").rename("vit.pt")
    with pytest.raises(UserError) as caught:
        load(name, prompt="a ship")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_one_line(monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "open_clip" else find_spec(name, *a)
    )
    with pytest.raises(UserError, match=r"needs? the package open_clip_torch; pip install \"bigroc\[words\]\""):
        load("open_clip:ViT-B-32:weights.pt", prompt="a ship")


# Made with them


@pytest.fixture
def images(tmp_path) -> Path:
    pixels, labels = tiny_pixels(4)
    np.savez(tmp_path / "images.npz", arr_0=pixels, arr_1=labels)
    return tmp_path / "images.npz"


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in Path(f"{out}.manifest.jsonl").read_text().splitlines()]


def made(ours: Path, out: Path, *words: object) -> list[dict]:
    argv = ["--ckpt", ours, "--prompt", "a red ship", "--out", out, "--steps", 3, "--device", "cpu", *words]
    assert refine.cli.main([str(word) for word in argv]) == 0
    return rows(out)


def test_images_are_refined_towards_the_prompt_whatever_their_labels(ours, images, tmp_path, capsys):
    found = made(ours, tmp_path / "out.npz", "--input", images, "--eps", 2)
    assert all(row["class"] == "a red ship" for row in found)
    assert "4 images refined towards 'a red ship', l2 eps 2" in capsys.readouterr().out
    assert np.mean([row["confidence_after"] - row["confidence_before"] for row in found]) > 0


@pytest.mark.parametrize("start", ["seeds", "noise"])
def test_images_are_generated_from_a_prompt(ours, tmp_path, start):
    found = made(ours, tmp_path / "out.npz", "--task", "generate", "--start-from", start, "--num-images", 3)
    assert [row["class"] for row in found] == ["a red ship"] * 3
    x_u8 = open_images(tmp_path / "out.npz").read(0, 3)
    assert len(x_u8.flatten(1).unique(dim=0)) == 3


def test_several_prompts_are_generated_in_turn(ours, tmp_path):
    out = tmp_path / "out.npz"
    argv = [
        "--task",
        "generate",
        "--ckpt",
        ours,
        "--prompt",
        "a red ship|a green frog",
        "--num-images",
        4,
        "--out",
        out,
    ]
    assert refine.cli.main([str(word) for word in [*argv, "--start-from", "noise", "--steps", 1]]) == 0
    assert [row["class"] for row in rows(out)] == ["a red ship", "a green frog"] * 2


TASKS: dict[str, tuple[object, ...]] = {
    "translate": (),
    "inpaint": ("--rectangle", "4,4,8,8"),
    "paint": ("--rectangle", "4,4,8,8"),
    "superres": ("--factor", 2),
    "sketch": (),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_with_a_class_takes_the_prompt_for_it(ours, images, tmp_path, task):
    source = images
    if task == "sketch":
        source = tmp_path / "drawing.png"
        from PIL import Image

        Image.new("RGB", (SIZE, SIZE), "white").save(source)
    found = made(ours, tmp_path / "out.npz", "--task", task, "--input", source, *TASKS[task])
    assert all(row["class"] == "a red ship" for row in found)


def test_a_dry_run_takes_names_of_open_clip(capsys, tmp_path):
    argv = ["--ckpt", "open_clip:ViT-B-32:laion2b_s34b_b79k", "--prompt", "a ship", "--input", "x.npz", "--eps", "1"]
    assert refine.cli.main([*argv, "--out", str(tmp_path / "y.npz"), "--dry-run"]) == 0
    assert "prompt: a ship" in capsys.readouterr().out


def test_the_same_run_with_another_prompt_is_another_run(ours, images, tmp_path, capsys):
    out = tmp_path / "out.npz"
    made(ours, out, "--input", images, "--eps", 2)
    argv = ["--ckpt", ours, "--prompt", "a frog", "--out", out, "--steps", 3, "--device", "cpu", "--input", images]
    assert refine.cli.main([str(word) for word in [*argv, "--eps", 2]]) == 2
    assert "prompt" in capsys.readouterr().err
