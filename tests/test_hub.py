"""The Hugging Face hub: names on it, its cache as a place of checkpoints, a classifier as a repository's files."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robust_models import UserError, load, save
from robust_models.checkpoints.hub import HubName, wanted_files
from robust_models.checkpoints.load import find
from robust_models.cli import main
from robust_models.runtime.files import PRETRAINED, sha256_of
from tests.tiny import tiny_classifier

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub's cache, offline; cache(repository, files) puts a repository there as the hub's library lays it out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repo: str, files: dict[str, Path | str], *, branch: str = "main") -> Path:
        home = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        snapshot = home / "snapshots" / COMMIT
        for name, content in files.items():
            blob = home / "blobs" / name.replace("/", "-")
            blob.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, blob)
            else:
                blob.write_text(content)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(blob)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(COMMIT)
        return snapshot

    return put


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    save(tiny_classifier(), tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    torch.save({"state_dict": tiny_classifier().network.state_dict()}, tmp_path / "foreign.pt")
    return tmp_path / "foreign.pt"


def same(a, b) -> bool:
    x = torch.rand(2, 3, 16, 16)
    return torch.equal(a(x), b(x))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf:me/net", HubName("me/net")),
        ("hf:me/net@v1.0", HubName("me/net", "v1.0")),
        ("hf:me/net/runs/a.pt", HubName("me/net", None, "runs/a.pt")),
        ("hf:me/net@abc/a.pt", HubName("me/net", "abc", "a.pt")),
    ],
)
def test_a_name_on_the_hub(text, found):
    assert HubName.parse(text) == found
    assert str(found) == text


@pytest.mark.parametrize("text", ["hf:", "hf:net", "hf:me/", "hf:/net", "hf:me/net@", "hf:me/a b", "hf:../../etc@x y"])
def test_what_is_no_name_on_the_hub_is_said(text):
    with pytest.raises(UserError, match="is not hf:OWNER/NAME"):
        find(text)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["README.md", "config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin"], ["config.json", "pytorch_model.bin"]),
        (["README.md", "best.pt"], ["best.pt"]),
        (["config.json", "best.pt"], ["best.pt"]),
        (
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "onnx/model.safetensors",
            ],
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
    ],
)
def test_the_files_of_a_checkpoint(names, wanted):
    assert wanted_files(names, HubName("me/net")) == wanted


def test_no_weights_or_several_are_said():
    with pytest.raises(UserError, match=r"holds no weights .*; it has README\.md"):
        wanted_files(["README.md"], HubName("me/net"))
    with pytest.raises(UserError, match=r"2 files of weights; name one: hf:me/net/a\.pt, hf:me/net/b\.pt"):
        wanted_files(["a.pt", "b.pt"], HubName("me/net"))
    with pytest.raises(UserError, match=r"has no file c\.pt; it has a\.pt, b\.pt"):
        wanted_files(["a.pt", "b.pt"], HubName("me/net", file="c.pt"))


def test_checkpoints_come_from_the_cache(cache, ours, foreign):
    cache("me/one", {"model.safetensors": ours, "config.json": "{}", "README.md": "# one"})
    cache("me/other", {"weights.pt": foreign, "README.md": "# other"})
    cache("me/tagged", {"a.pt": foreign, "b.safetensors": ours}, branch="v1")
    assert same(load("hf:me/one"), load(ours))
    other = load("hf:me/other", activation="silu", image_size=16)
    assert same(other, load(foreign, activation="silu", image_size=16))
    assert same(load("hf:me/tagged@v1/b.safetensors"), load(ours))
    with pytest.raises(UserError, match="hf:me/tagged: the Hugging Face hub gives nothing"):
        load("hf:me/tagged")  # of no branch main


def test_the_folder_of_another_library_comes_whole(cache, tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(network, tmp_path / "net", safe_serialization="both")
    files = {file.name: file for file in (tmp_path / "net").iterdir() if file.name != "pytorch_model.bin"}
    cache("timm/net", files)
    assert load("hf:timm/net").description.arch == "timm:test_resnet"


def test_what_is_nowhere_is_one_line(cache):
    with pytest.raises(UserError, match=r"hf:me/none: .* a copy in the hub's cache, or a folder given by its path"):
        load("hf:me/none")


def test_the_folder_of_a_training_run_is_its_classifier(ours, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copyfile(ours, tmp_path / "run" / "classifier.safetensors")
    (tmp_path / "run" / "config.json").write_text('{"config": {}}')
    assert same(load(tmp_path / "run"), load(ours))


def test_a_pushed_folder_is_the_classifier_and_its_card(ours, tmp_path, capsys):
    assert main(["push", str(ours), str(tmp_path / "repo"), "--licence", "mit"]) == 0
    folder = tmp_path / "repo"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == ours.read_bytes()
    assert json.loads((folder / "config.json").read_text())["arch"] == "preact_resnet10_w16"
    head, text = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    assert "license: mit" in head
    assert "| classes | 3: airplane, automobile, bird |" in text
    assert same(load(folder), load(ours))
    assert main(["push", str(ours), str(folder)]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err


def test_what_is_given_of_a_foreign_file_is_pushed_with_it(foreign, tmp_path):
    flags = ["--activation", "silu", "--image-size", "16", "--normalize", "cifar10"]
    assert main(["push", str(foreign), str(tmp_path / "repo"), *flags]) == 0
    pushed = load(tmp_path / "repo")
    assert same(pushed, load(foreign, activation="silu", image_size=16, normalize="cifar10"))
    assert "normalize" not in pushed.description.assumptions


def test_an_embedded_classifier_keeps_bytes_and_card(tmp_path):
    assert main(["push", "cifar10-ablation-l2-050", str(tmp_path / "repo")]) == 0
    file = PRETRAINED / "cifar10-ablation-l2-050.safetensors"
    assert sha256_of(tmp_path / "repo" / "model.safetensors") == sha256_of(file)
    assert main(["push", "cifar10-l2-small", str(tmp_path / "small")]) == 0
    card = (PRETRAINED / "cifar10-l2-small.md").read_text()
    assert (tmp_path / "small" / "README.md").read_text().endswith(card)


class Hub:
    """Stands in for the hub's HTTP interface, on a folder."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.made = files, []

    def list_repo_files(self, repo, revision=None):
        return sorted(self.files)

    def create_repo(self, repo, private, exist_ok):
        self.made.append((repo, private))

    def file_exists(self, repo, file, revision=None):
        return file in self.files

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message, ignore_patterns):
        sent = {f.name: f.read_bytes() for f in Path(folder_path).iterdir() if f.name not in (ignore_patterns or [])}
        self.files |= sent
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def test_push_keeps_a_card_that_stands_on_the_hub(ours, monkeypatch, capsys, tmp_path):
    there = Hub({"README.md": b"edited by hand"})
    monkeypatch.setattr(hub, "HfApi", lambda: there)
    assert main(["push", str(ours), "hf:me/net", "--private", "true"]) == 0
    assert there.made == [("me/net", True)]
    assert there.files["README.md"] == b"edited by hand"
    assert there.files["model.safetensors"] == ours.read_bytes()
    assert capsys.readouterr().out.startswith("https://hub/me/net/commit/1\n")
    (tmp_path / "card.md").write_text("# mine\n")
    assert main(["push", str(ours), "hf:me/net", "--card", str(tmp_path / "card.md")]) == 0
    assert there.files["README.md"].endswith(b"# mine\n")


def test_pull_copies_what_the_hub_has_now(cache, ours, foreign, monkeypatch, tmp_path, capsys):
    snapshot = cache("me/net", {"model.safetensors": ours, "config.json": "{}"})
    monkeypatch.setattr(hub, "HfApi", lambda: Hub({"model.safetensors": b"", "config.json": b""}))
    asked = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda repo, revision, allow_patterns: asked.append(allow_patterns) or str(snapshot)
    )
    assert main(["pull", "hf:me/net", "--out", str(tmp_path / "net.safetensors"), "--json"]) == 0
    assert asked == [["config.json", "model.safetensors"]]
    assert (tmp_path / "net.safetensors").read_bytes() == ours.read_bytes()
    assert json.loads(capsys.readouterr().out)["sha256"] == sha256_of(ours)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull", "cifar10-l2-small"], "is not hf:OWNER/NAME; files, and published names, need no pull"),
        (["pull", "hf:me/net", "--out", "."], "exists; choose another place"),
        (["push", "cifar10-l2-small", "hf:me"], "is not hf:OWNER/NAME"),
        (["push", "cifar10-l2-small", "hf:me/net/a.pt"], "names a file; give hf:OWNER/NAME"),
        (["push", "cifar10-l2-small", "new", "--card", "none.md"], "card: none.md is not a readable text file"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_bad_words_are_one_line_before_anything_is_sent(words, message, dry, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*words, *(["--dry-run"] if dry else [])]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
