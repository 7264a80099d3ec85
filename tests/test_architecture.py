"""docs/architecture.md: its rooms are there, and the diffs of "where do I change it" apply and do what they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_models import save
from tests.documented import ROOT, blocks
from tests.tiny import tiny_classifier, tiny_pixels

PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("robust_models", "train", "refine", "eval", "bigroc", "configs")
TRIED = {  # in the changed copy: what prints true if the change works
    "attack loss": """
from refine import bigroc
x_ref = bigroc(1.0, loss="doubt")(model, x, y)
good(model(x_ref).softmax(1).gather(1, y[:, None]).mean() > model(x).softmax(1).gather(1, y[:, None]).mean())
""",
    "synthesis task": """
import refine.cli
status = refine.cli.main("--task brighten --ckpt tiny.safetensors --input in.npz --out out.npz --steps 3".split())
before, after = (to_float(open_images(name).read(0, 4)).mean() for name in ("in.npz", "out.npz"))
good(status == 0 and after > before)
""",
    "image format": """
import refine.cli
from robust_models import write_images
records = np.concatenate([np.arange(4)[:, None] % 3, np.random.default_rng(0).integers(0, 256, (4, 3072))], axis=1)
records.astype(np.uint8).tofile("in.bin")
found = open_images("in.bin")
status = refine.cli.main("--ckpt tiny.safetensors --input in.bin --out out.bin --eps 1".split())
written = open_images("out.bin")
good(
    (len(found), found.size, found.labels.tolist()) == (4, (32, 32), [0, 1, 2, 0])
    and (found.read(1, 3).flatten(1).numpy() == records[1:3, 1:]).all()
    and status == 0
    and written.labels.tolist() == [0, 1, 2, 0]
    and not torch.equal(written.read(0, 4), found.read(0, 4))
)
""",
    "checkpoint layout": """
torch.save({"weights_of_mine": model.network.state_dict(), "epoch": 3}, "theirs.pt")
again = load("theirs.pt", normalize="0.4,0.5,0.6,0.2,0.25,0.3", class_names=list(model.class_names), image_size=16)
good(torch.allclose(again(x), model(x), atol=1e-5))
""",
    "metric": """
import eval.cli
from eval import image_quality
judged = {"features": "classifier:tiny.safetensors", "metrics": "mean-gap"}
words = "quality --images in.npz --reference in.npz --features classifier:tiny.safetensors --metrics mean-gap,fid"
good(
    image_quality(x, x, **judged)["mean-gap"] == 0
    and image_quality(x, 1 - x, **judged)["mean-gap"] > 0
    and eval.cli.main(words.split()) == 0
)
""",
    "training objective": """
import train.cli
words = "--config cifar_l2_small --data.path in.npz --data.class_names [] --data.validation 2 --batch_size 2 --epochs 1"
words += " --arch preact_resnet10_w16 --compile false --validate.steps 1 --objective.name squared --out run"
good(train.cli.main(words.split()) == 0)
""",
}
BEFORE = """
import numpy as np
import torch
from robust_models import load, open_images, to_float
torch.manual_seed(0)
model = load("tiny.safetensors")
images = open_images("in.npz")
x, y = to_float(images.read(0, 4)), torch.as_tensor(images.labels)
works = {}
def good(what):
    works[name] = bool(what)
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the sources with all of the page's diffs applied, with nothing left over."""
    place = tmp_path_factory.mktemp("changed")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
    (place / "robust_models" / "pretrained").symlink_to(ROOT / "robust_models" / "pretrained")
    for diff in blocks(PAGE, "diff"):
        done = subprocess.run(["git", "apply", "-"], cwd=place, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def outcomes(changed, tmp_path_factory) -> dict[str, bool]:
    """Whether each change does what it says, all tried in one process."""
    program = BEFORE + "".join(f"\nname = {name!r}\n{tried}" for name, tried in TRIED.items())
    program += "\nimport json\nprint(json.dumps(works))"
    place = tmp_path_factory.mktemp("tried")
    torch.manual_seed(0)
    save(tiny_classifier(), place / "tiny.safetensors")
    pixels, labels = tiny_pixels(4)
    np.savez(place / "in.npz", arr_0=pixels, arr_1=labels)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(changed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("change", TRIED)
def test_the_smallest_change_works(outcomes, change):
    assert outcomes[change]


def test_the_table_has_a_row_and_a_diff_for_each():
    text = PAGE.read_text()
    assert len(blocks(PAGE, "diff")) == len(TRIED)
    for change in TRIED:
        assert f"\n### A new {change}\n" in text
        assert f"(#a-new-{change.replace(' ', '-')})" in text


def test_the_files_that_the_page_names_are_there():
    named = re.findall(r"`((?:robust_models|refine|train|eval|bigroc|tests|configs)/[\w/.]*)`", PAGE.read_text())
    assert len(named) > 20
    assert [name for name in named if "NAME" not in name and "KIND" not in name and not (ROOT / name).exists()] == []
