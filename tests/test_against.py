"""Refinement along what a strong classifier wants and a weaker one does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from refine import Refiner, refine
from refine.cli import main
from refine.method import Against, bigroc
from robust_models import Description, RobustClassifier, UserError, save
from robust_models.attacks import gradient_and_loss, negative_logit
from tests.tiny import CLASSES, SIZE, tiny_classifier, tiny_pixels


def two() -> tuple[RobustClassifier, RobustClassifier]:
    torch.manual_seed(0)
    return tiny_classifier(), tiny_classifier("preact_resnet10_w8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, model in zip(("strong", "weak"), two(), strict=True):
        save(model, tmp_path / f"{name}.safetensors")
    pixels, labels = tiny_pixels(7)
    np.savez(tmp_path / "in.npz", arr_0=pixels, arr_1=labels, class_names=np.array(CLASSES))
    return tmp_path


X = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 1, 0])


def test_the_gradient_is_the_difference_of_both():
    strong, weak = two()
    gradient, values = Against(weak, 0.7)(strong, X, Y, negative_logit)
    parts = [gradient_and_loss(model, X, Y, negative_logit) for model in (strong, weak)]
    torch.testing.assert_close(gradient, parts[0][0] - 0.7 * parts[1][0])
    torch.testing.assert_close(values, parts[0][1] - 0.7 * parts[1][1])


def test_against_itself_at_equal_weight_nothing_moves():
    strong, _ = two()
    same = refine(strong, X, Y, eps=0.5, loss="logit", against=strong, against_weight=1.0)
    assert torch.equal(same, X)
    half = refine(strong, X, Y, eps=0.5, loss="logit", against=strong)  # of the gradient, which is normalised
    torch.testing.assert_close(half, refine(strong, X, Y, eps=0.5, loss="logit"), rtol=0, atol=1e-5)


def test_the_steps_gain_more_on_the_strong_one_than_on_the_weak():
    strong, weak = two()
    x = refine(strong, X, Y, eps=1.0, loss="logit", against=weak, against_weight=1.0)

    def gap(images):
        with torch.no_grad():
            return (negative_logit(strong(images), Y) - negative_logit(weak(images), Y)).sum()

    plain = refine(strong, X, Y, eps=1.0, loss="logit")
    assert gap(x) < gap(plain) < gap(X)


def test_images_at_rest_stay_at_rest_against_another():
    strong, weak = two()
    settled = bigroc(0.5, stop_energy=1e6, against=weak)
    assert torch.equal(settled(strong, X, Y), X)


def test_the_command_gives_what_the_function_does_and_says_so(root, capsys):
    words = [
        "--ckpt",
        str(root / "strong.safetensors"),
        "--input",
        str(root / "in.npz"),
        "--eps",
        "0.5",
        "--device",
        "cpu",
    ]
    words += [
        "--loss",
        "logit",
        "--against",
        str(root / "weak.safetensors"),
        "--against-weight",
        "0.8",
        "--precision",
        "fp32",
    ]
    images = {}
    for size in (2, 7):
        out = root / f"{size}.npz"
        assert main([*words, "--out", str(out), "--batch-size", str(size), "--json"]) == 0
        images[size] = np.load(out)["arr_0"]
    assert '"against_weight": 0.8' in capsys.readouterr().out
    assert np.array_equal(images[2], images[7])
    pixels, labels = tiny_pixels(7)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    strong, weak = two()
    x = refine(strong, x, labels, eps=0.5, loss="logit", against=weak, against_weight=0.8)
    by_hand = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(by_hand.astype(int) - images[7].astype(int)).max() <= 1


def test_what_does_not_fit_is_one_line(root, capsys):
    strong, weak = two()
    other = RobustClassifier.from_description(Description("preact_resnet10_w8", ("a", "b", "c"), SIZE)).eval()
    with pytest.raises(UserError, match="class 0 is 'airplane' for classifier 1 and 'a' for classifier 2"):
        Refiner(strong, 1.0, against=other)
    with pytest.raises(UserError, match="keep: 'best' compares losses of one classifier"):
        Refiner(strong, 1.0, against=weak, keep="best")
    with pytest.raises(UserError, match="against_weight: 0 is not above 0"):
        Refiner(strong, 1.0, against=weak, against_weight=0)
    words = ["--ckpt", str(root / "strong.safetensors"), "--input", str(root / "in.npz"), "--eps", "0.5"]
    words += ["--out", str(root / "out.npz")]
    for more, message in (
        (["--against", "nobody", "--dry-run"], "against: no file nobody"),
        (["--against", "cifar10-l2-small"], "against: classifier 1 has 3 classes, classifier 2 has 10"),
        (["--against", str(root / "weak.safetensors"), "--keep", "best"], "keep: best compares losses"),
        (["--against-weight", "0"], "against_weight"),
        (["--against-weight", "0.9"], "against_weight: 0.9 is for --against, which is not given"),
        (["--against", str(root / "strong.safetensors")], "is what refines; name a weaker classifier"),
        (["--against", str(root / "in.npz")], "against: "),
        (["--stop-energy", "nan"], "stop_energy: nan is no energy"),
        (["--stop-energy", "inf"], "stop_energy: inf is no energy"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (root / "out.npz").exists()
