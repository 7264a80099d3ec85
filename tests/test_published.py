"""Published classifiers by name: the table, the way onto this machine, what is said when it fails."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robust_models import UserError, load
from robust_models.architectures import build
from robust_models.checkpoints import published as module
from robust_models.checkpoints.load import find
from robust_models.checkpoints.published import known_by_hash, published
from robust_models.runtime.files import sha256_of
from tests.tiny import tiny_classifier


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch hub's cache, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A row whose file lies at a file:// address: a state dict without a word about itself."""
    file = tmp_path / "upstream.pt"
    torch.save({"state_dict": tiny_classifier("preact_resnet10_w16").network.state_dict()}, file)
    row = replace(
        published()["madrylab-cifar10-l2-0.5"],
        name="somebody-l2",
        url=file.as_uri(),
        file="somebody.pt",
        arch="preact_resnet10_w16",
        activation="silu",
        sha256=sha256_of(file),
        megabytes=None,
    )
    monkeypatch.setattr(module, "published", lambda: {row.name: row})
    monkeypatch.setattr(sys.modules["robust_models.checkpoints.load"], "published", lambda: {row.name: row})
    return row


def test_every_row_says_where_from_whose_and_what():
    rows = published()
    assert len(rows) >= 20
    for name, row in rows.items():
        assert row.url.startswith("https://")
        assert row.source.startswith("https://")
        assert row.licence
        assert row.sha256 is None or len(row.sha256) == 64
        assert (row.threat_model is None) == ("standard" in name.lower())
        assert row.normalizer is not None
        with torch.device("meta"):
            build(row.arch, num_classes=10, **({} if ":" in row.arch else {"activation": row.activation}))
    assert rows["madrylab-cifar10-linf-8"].threat_model.eps == pytest.approx(8 / 255)
    assert len({row.url for row in rows.values()}) == len({row.file for row in rows.values()}) == len(rows)


def test_a_name_is_downloaded_once_said_aloud_and_described_by_its_row(upstream, hub, capsys):
    model = load("somebody-l2")
    said = capsys.readouterr().err
    assert f"downloading {upstream.url}" in said
    assert "MIT" in said
    assert f"sha256 {upstream.sha256[:12]}" in said
    description = model.description
    assert (description.arch, description.activation) == ("preact_resnet10_w16", "silu")
    assert str(description.threat_model) == "l2 eps 0.5"
    assert description.normalizer == upstream.normalizer
    assert description.recipe["source"]["published"] == "somebody-l2"

    Path(upstream.url.removeprefix("file://")).unlink()
    load("somebody-l2")  # from the cache
    assert "downloading" not in capsys.readouterr().err


def test_other_bytes_than_the_source_states_are_refused(upstream, hub):
    hub.mkdir(parents=True)
    (hub / "somebody.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"is not somebody-l2 \(sha256 .*expected .*remove it"):
        find("somebody-l2")
    (hub / "somebody.pt").unlink()
    Path(upstream.url.removeprefix("file://")).write_bytes(b"changed at the source")
    with pytest.raises(UserError, match=r"could not be downloaded .*invalid hash.*put it at"):
        find("somebody-l2")
    assert list(hub.iterdir()) == []


def test_no_network_is_one_line_with_the_place_to_put_a_copy(upstream, hub, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"no network.*put it at .*somebody.pt, or give its path") as caught:
        find("somebody-l2")
    assert "\n" not in str(caught.value)


def test_a_file_is_known_by_its_hash_under_any_name(upstream, tmp_path):
    renamed = tmp_path / "whatever.bin"
    renamed.write_bytes(Path(upstream.url.removeprefix("file://")).read_bytes())
    assert known_by_hash(renamed).name == "somebody-l2"
    assert load(renamed).description.activation == "silu"
    renamed.write_bytes(b"x")
    assert known_by_hash(renamed) is None


def test_a_name_with_a_slip_gets_the_near_miss():
    with pytest.raises(UserError, match=r"did you mean madrylab-cifar10-l2-0\.5"):
        load("madrylab-cifar10-l2-05")
