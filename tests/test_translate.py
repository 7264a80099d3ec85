"""Translation: which images go where, what the steps lower, and what is told when neither is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from refine.cli import main
from refine.synthesis.tasks.translate import TASK, TranslateConfig, choose
from robust_models import Description, RobustClassifier, UserError, open_images, save, to_float
from tests.tiny import CLASSES, SIZE, tiny_pixels


@pytest.fixture
def two_domains(tmp_path):
    network = RobustClassifier.from_description(Description("preact_resnet10_w16", ("horse", "zebra"), SIZE)).eval()
    save(network, tmp_path / "two.safetensors")
    return tmp_path / "two.safetensors"


@pytest.fixture
def domains_npz(tmp_path):
    np.savez(tmp_path / "domains.npz", arr_0=tiny_pixels(6)[0], arr_1=np.array([0, 1, 1, 0, 0, 1]))
    return tmp_path / "domains.npz"


@pytest.fixture
def plain_npz(tmp_path):
    np.savez(tmp_path / "plain.npz", arr_0=tiny_pixels(6)[0])
    return tmp_path / "plain.npz"


def chosen(path, classes, **flags):
    config = TranslateConfig(ckpt="any", out=Path("o.npz"), input=path, **flags)
    index, target = choose(config, open_images(path), classes)
    return index.tolist(), target.tolist()


def test_the_source_class_is_selected_by_labels(domains_npz):
    assert chosen(domains_npz, CLASSES, source_class="airplane", target_class="Bird") == ([0, 3, 4], [2, 2, 2])
    assert chosen(domains_npz, CLASSES, source_class="1", target_class="0") == ([1, 2, 5], [0, 0, 0])
    assert chosen(domains_npz, CLASSES, target_class="bird") == ([0, 1, 2, 3, 4, 5], [2] * 6)


def test_without_labels_all_images_are_of_the_source_class(plain_npz):
    assert chosen(plain_npz, CLASSES, source_class="airplane", target_class="bird") == ([0, 1, 2, 3, 4, 5], [2] * 6)
    assert chosen(plain_npz, ("horse", "zebra"), source_class="horse") == ([0, 1, 2, 3, 4, 5], [1] * 6)


def test_of_two_domains_the_other_is_the_target(domains_npz):
    assert chosen(domains_npz, ("horse", "zebra")) == ([0, 1, 2, 3, 4, 5], [1, 0, 0, 1, 1, 0])
    assert chosen(domains_npz, ("horse", "zebra"), source_class="zebra") == ([1, 2, 5], [0, 0, 0])


@pytest.mark.parametrize(
    ("flags", "classes", "message"),
    [
        (
            {},
            CLASSES,
            r"^target_class: is required, as this classifier has 3 classes, not two domains \(airplane, auto",
        ),
        ({"target_class": "brid"}, CLASSES, r"^target_class: class 'brid' is none of .* did you mean bird\?$"),
        ({"source_class": "7", "target_class": "0"}, CLASSES, r"^source_class: class 7 is outside the classifier's 3"),
        (
            {},
            ("horse", "zebra"),
            r"^target_class: .*plain.npz has no labels that say which domain its images are of; give --target",
        ),
    ],
)
def test_what_cannot_be_known_is_told(plain_npz, flags, classes, message):
    with pytest.raises(UserError, match=message) as error:
        chosen(plain_npz, classes, **flags)
    assert "\n" not in str(error.value)


def test_a_class_without_images_is_told(domains_npz):
    with pytest.raises(UserError, match=r"^source_class: .*domains.npz has no images of class bird$"):
        chosen(domains_npz, CLASSES, source_class="bird", target_class="0")


def test_a_class_is_not_translated_into_itself(plain_npz, capsys):
    flags = ["--source-class", "bird", "--target-class", "bird"]
    assert main(["--task", "translate", "--ckpt", "x", "--input", str(plain_npz), "--out", "o.npz", *flags]) == 2
    assert "target_class: bird is the source class too; name another" in capsys.readouterr().err


def test_defaults_are_the_papers_at_224_pixels_and_smaller_for_cifar():
    large, small = TASK.defaults(224), TASK.defaults(32)
    assert (large.eps, large.step_size, large.steps, large.norm) == (80, 0.5, 200, "l2")
    assert small.eps < large.eps / 5


def test_the_command_translates_one_domain(two_domains, domains_npz, tmp_path, capsys):
    out = tmp_path / "out.npz"
    words = ["--task", "translate", "--ckpt", two_domains, "--input", domains_npz, "--out", out, "--json"]
    status = main([str(word) for word in [*words, "--source-class", "horse", "--eps", 2, "--steps", 5]])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    summary = json.loads(captured.out)
    assert (summary["n"], summary["eps"], summary["steps"]) == (3, 2, 5)
    assert summary["confidence_after"] > summary["confidence_before"]
    written = open_images(out)
    assert written.labels is not None
    assert written.labels.tolist() == [1, 1, 1]
    before = to_float(open_images(domains_npz).read(0, 6))[[0, 3, 4]]
    moved = (to_float(written.read(0, 3)) - before).flatten(1).norm(dim=1)
    assert (moved <= 2.05).all()
    assert (moved > 0.5).all()
