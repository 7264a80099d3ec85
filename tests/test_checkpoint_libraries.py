"""Networks of timm, torchvision, transformers and Lightning as these save them: the same logits after loading."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robust_models import Normalizer, RobustClassifier, UserError, load, save
from robust_models.checkpoints.hugging_face import folder_of, read_folder
from robust_models.checkpoints.infer import imagenet, library_table

IMAGENET = Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def lively(network: nn.Module) -> nn.Module:
    """Every parameter and statistic away from the value it begins with, so that none can be exchanged or forgotten."""
    for name, tensor in network.state_dict().items():
        if "running_var" in name or (tensor.ndim == 1 and "weight" in name):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    return network.eval()


@torch.no_grad()
def assert_same(model: RobustClassifier, network: nn.Module, size: int) -> None:
    """Logits of the pixels as the file's normaliser changes them, within 1e-5."""
    x = torch.rand(2, 3, size, size)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (model.description.normalizer.mean, model.description.normalizer.std)
    )
    expected = network((x - mean) / std)
    expected = getattr(expected, "logits", expected)
    assert expected.std() > 1e-3
    assert (model(x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def timm_network(name: str, **options) -> nn.Module:
    import timm

    return lively(timm.create_model(name, num_classes=5, **options))


@pytest.mark.parametrize(
    ("name", "also", "size"),
    [
        ("timm:convnext_atto", (), 64),
        ("timm:vit_tiny_patch16_224", ("timm:deit_tiny_patch16_224",), 224),
        ("timm:resnet18d", (), 64),
        ("torchvision:resnet18", ("timm:resnet18", "timm:resnetblur18"), 64),
        ("torchvision:convnext_tiny", (), 64),
        ("torchvision:mobilenet_v3_small", (), 64),
        ("torchvision:squeezenet1_1", (), 64),
    ],
)
def test_a_bare_state_dict_of_a_library_network_is_recognised(name, also, size, tmp_path):
    from torchvision.models import get_model

    library, _, short = name.partition(":")
    network = timm_network(short) if library == "timm" else lively(get_model(short, num_classes=5))
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "a.pt"
    )
    model = load(tmp_path / "a.pt", normalize="imagenet", class_names="abcde")
    assert (model.description.arch, model.image_size) == (name, 224)
    assert model.description.recipe["source"]["also_fits"] == [*also]
    assert_same(model, network, size)


def test_a_vision_transformer_tells_its_image_size():
    network = timm_network("vit_tiny_patch16_224", img_size=64)
    match = imagenet.library_network(dict(network.state_dict()))
    assert match is not None
    assert (match.arch, match.image_size, match.options) == ("timm:vit_tiny_patch16_224", 64, {"img_size": 64})
    larger = timm_network("vit_tiny_patch16_224", img_size=384)
    match = imagenet.library_network(dict(larger.state_dict()))
    assert match is not None
    assert (match.arch, match.options, match.also) == ("timm:vit_tiny_patch16_384", {}, ())


@pytest.mark.parametrize(
    "name", ["torchvision:resnet50", "torchvision:vit_b_32", "torchvision:regnet_y_400mf", "timm:xcit_nano_12_p16_224"]
)
def test_the_table_agrees_with_the_installed_libraries(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key = library_table.key_of(name)
    assert f" {name}@224" in next(line for line in imagenet.TABLE.read_text().splitlines() if line.startswith(key))


def test_a_line_of_the_table_names_the_plainest_first():
    names = {"timm:flexivit_tiny": 240, "timm:vit_tiny_384": 384, "timm:vit_tiny": 224, "torchvision:vit": 224}
    line = library_table.line_of(names, "0123")
    assert line == "0123 torchvision:vit@224 timm:vit_tiny@224 timm:flexivit_tiny@240 timm:vit_tiny_384@384"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("convnext_atto", {"use_grn": True}), ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2})],
)
def test_a_folder_of_timm_gives_network_labels_and_normaliser(name, options, file, tmp_path):
    import timm

    network = timm_network(name, **options)
    labels = ["cat", "dog", "fish", "fowl", "fox"]
    timm.models.save_for_hf(
        network,
        tmp_path,
        model_config={"label_names": labels},
        model_args=options,
        safe_serialization=file.endswith("safetensors"),
    )
    assert (tmp_path / file).is_file()
    model = load(tmp_path)
    assert (model.description.arch, model.class_names) == (f"timm:{name}", tuple(labels))
    assert model.image_size == options.get("img_size", 224)
    assert model.description.recipe["source"]["layout"] == "Hugging Face folder of timm"
    assert_same(model, network, 64)
    save(model, tmp_path / "ours.safetensors")
    again = load(tmp_path / "ours.safetensors")
    assert again.description == model.description
    assert_same(again, network, 64)


def tiny_transformers(kind: str) -> nn.Module:
    import transformers as hf

    labels = {"id2label": {0: "cat", 1: "dog", 2: "fish"}, "label2id": {"cat": 0, "dog": 1, "fish": 2}}
    narrow = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    small = {"image_size": 32, "patch_size": 8}
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    swin = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32, "patch_size": 4}
    return lively(
        {
            "ViT": lambda: hf.ViTForImageClassification(hf.ViTConfig(**vit, **small, **labels)),
            "DeiT": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**vit, **small, **labels)),
            "ResNet": lambda: hf.ResNetForImageClassification(
                hf.ResNetConfig(embedding_size=8, layer_type="basic", **narrow, **labels)
            ),
            "ConvNext": lambda: hf.ConvNextForImageClassification(
                hf.ConvNextConfig(num_stages=2, image_size=32, **narrow, **labels)
            ),
            "Swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(**swin, **labels)),
        }[kind]()
    )


PREPROCESSOR = {
    "crop_size": {"height": 32, "width": 32},
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "rescale_factor": 1 / 255,
}


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "ResNet", "ConvNext", "Swin"])
def test_a_folder_of_transformers_gives_network_labels_and_normaliser(kind, tmp_path):
    network = tiny_transformers(kind)
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model = load(tmp_path)
    assert (model.description.arch, model.image_size) == (f"transformers:{kind}ForImageClassification", 32)
    assert model.class_names == ("cat", "dog", "fish")
    assert model.description.normalizer == Normalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert_same(model, network, 32)
    save(model, tmp_path / "ours.safetensors")
    again = load(tmp_path / "ours.safetensors")
    assert again.description == model.description
    assert_same(again, network, 32)
    features = again.features(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, again.head.in_features)


@pytest.mark.parametrize("size", ["10KB", "5GB"])
def test_shards_are_put_together_and_a_missing_one_is_named(size, tmp_path):
    network = tiny_transformers("ViT")
    network.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (size == "10KB")
    assert_same(load(tmp_path), network, 32)
    if size == "10KB":
        sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
        with pytest.raises(UserError, match=r"index.json names model-00002-of-\d+.safetensors, which is missing"):
            load(tmp_path)
        index = {"weight_map": {"vit.cls_token": "../elsewhere.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"elsewhere.safetensors', which is not a file beside it"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0.5, 0.5),
        ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ({"image_mean": 0.5, "image_std": 0.25, "include_top": True}, 0.5, 0.0625),
        ({"do_rescale": False, "image_mean": 127.5, "image_std": 51.0}, 0.5, 0.2),
    ],
)
def test_what_transformers_does_to_pixels_becomes_one_normaliser(said, mean, std, tmp_path):
    tiny_transformers("ResNet").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    normalizer = load(tmp_path).description.normalizer
    assert normalizer.mean == pytest.approx((mean,) * 3)
    assert normalizer.std == pytest.approx((std,) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_transformers("ViT").save_pretrained(tmp_path)
    return tmp_path


def rewritten(folder: Path, **entries) -> Path:
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"architectures": ["BertForSequenceClassification"]},
            "holds a 'BertForSequenceClassification', which is none of",
        ),
        ({"architectures": 7}, "holds a 7, which is none of"),
        ({"architectures": ["os.system"]}, "holds a 'os.system', which is none of"),
        ({"architectures": ["ImageGPTForImageClassification"]}, "takes something else than pixels"),
        ({"architectures": None}, "names no network: neither architecture"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "needs Python code of its author"),
        ({"hidden_size": 10**9}, r"hidden_size = 1000000000, more than 131,072"),
        ({"hidden_size": 4096, "intermediate_size": 65536}, r"of [\d,]+ numbers, the tensors hold [\d,]+"),
        ({"num_hidden_layers": 100_000}, "many times more layers than there are tensors"),
        ({"hidden_size": "big"}, "ViTConfig refuses it"),
        ({"num_attention_heads": 3}, r"k_proj.bias is \[32\], expected \[30\]"),
        ({"num_channels": 4}, "num_channels is 4; only networks for RGB"),
        ({"num_hidden_layers": 1}, "numbers, the tensors hold"),
        ({"num_hidden_layers": 3}, "numbers, the tensors hold"),
        ({"id2label": {"1": "a"}}, "does not name 1 to 50,000 classes"),
        ({"image_size": [32, 64]}, "numbers|only square ones|expected"),
        ({"architecture": "hf-hub:someone/evil"}, "builds its network, which runs that code"),
        ({"architecture": "no_such_network", "num_classes": 3}, "no_such_network"),
        ({"architecture": "resnet18", "model_args": {"checkpoint_path": "x"}}, "option checkpoint_path"),
        ({"architecture": "resnet18", "model_args": [1]}, "options that are a list"),
        ({"architecture": "resnet18", "model_args": {"in_chans": 1}}, "only networks for RGB"),
        (
            {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": {"depth": 10**5}},
            "many times more layers",
        ),
    ],
)
def test_a_config_that_makes_no_classifier_is_one_line(entries, message, folder):
    with pytest.raises(UserError, match=message) as error:
        load(rewritten(folder, **entries))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("ckpt: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config.json is broken \(JSONDecodeError"),
        ("[" * 200_000, "config.json is broken"),
        ("[1]", "config.json holds a list"),
        ("{}", "names no network: .* among no entries"),
    ],
)
def test_a_broken_config_is_one_line(text, message, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"image_mean": [0.5, 0.5], "image_std": 0.5}, "expected three numbers each"),
        ({"image_mean": 10**400, "image_std": 0.5}, "expected three numbers each"),
        ({"image_mean": 0.5, "image_std": 0.5, "rescale_factor": 0}, "rescale_factor is 0, expected a number above 0"),
        ({"image_mean": 0.5, "image_std": 0.5, "do_flip_channel_order": True}, "blue, green, red order"),
    ],
)
def test_what_cannot_be_done_to_pixels_is_one_line(said, message, folder):
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_file_of_weights_beside_its_config_is_a_folder(folder):
    assert folder_of(folder / "model.safetensors") == folder
    (folder / "other.safetensors").write_bytes(b"")
    assert folder_of(folder / "other.safetensors") is None
    rewritten(folder, architectures=None)
    assert folder_of(folder / "model.safetensors") is None
    (folder / "config.json").unlink()
    assert folder_of(folder / "model.safetensors") is None


def test_incomplete_folders_are_named(folder):
    with pytest.raises(UserError, match="no averaged weights beside its own"):
        read_folder(folder, ema=True)
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if "cls_token" not in n}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 tensors missing \(vit.embeddings.cls_token\)|of [\d,]+ numbers"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor pytorch_model.bin"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"is a folder without config.json"):
        load(folder)


def test_nothing_in_a_config_reaches_what_would_fetch_code_or_weights(folder, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    evil = {"attn_implementation": "someone/kernels", "_attn_implementation": "someone/kernels", "dtype": "float16"}
    evil |= {"quantization_config": {"quant_method": "awq"}, "_name_or_path": "someone/evil", "use_timm_backbone": True}
    model = load(rewritten(folder, **evil))
    assert not {*evil} & {*model.description.options["config"]}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def lightning_module(attribute: str, network: nn.Module):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, lr: float, name: str):
            super().__init__()
            self.save_hyperparameters()
            setattr(self, attribute, network)
            self.criterion = nn.CrossEntropyLoss(weight=torch.rand(5))
            self.register_buffer("seen", torch.zeros(1))

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return self.criterion(getattr(self, attribute)(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    return Module(lr=1e-3, name="small")


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers, loggers and accelerators
@pytest.mark.parametrize(("attribute", "averaged"), [("model", True), ("my_classifier", False)])
def test_a_checkpoint_of_lightning_gives_its_network(attribute, averaged, tmp_path):
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    network = timm_network("convnext_atto")
    module = lightning_module(attribute, network)
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(tmp_path, filename="a", every_n_train_steps=2),
            *([EMAWeightAveraging(decay=0.5)] if averaged else []),
        ],
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    model = load(tmp_path / "a.ckpt", normalize="imagenet")
    source = model.description.recipe["source"]
    assert source["layout"].startswith("Lightning, state dict under ")
    assert source["told"]["hyper_parameters"] == {"lr": 1e-3, "name": "small"}
    assert {"criterion", "seen"} <= {*source["ignored"]}

    stored = torch.load(tmp_path / "a.ckpt", weights_only=False)

    def from_entry(entry: str) -> nn.Module:
        prefix = f"{attribute}."
        own = {n.removeprefix(prefix): t for n, t in stored[entry].items() if n.startswith(prefix)}
        network.load_state_dict(own)
        return network.eval()

    if averaged:
        assert_same(load(tmp_path / "a.ckpt", normalize="imagenet", ema=True), from_entry("state_dict"), 64)
        assert_same(model, from_entry("current_model_state"), 64)
    else:
        assert_same(model, from_entry("state_dict"), 64)
        with pytest.raises(UserError, match="has no averaged weights"):
            load(tmp_path / "a.ckpt", ema=True)
