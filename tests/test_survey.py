"""Survey: what raters are shown, whose images and labels count, and what a file of answers goes on with."""

import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.survey.cli import SURVEY
from eval.survey.config import SurveyConfig
from eval.survey.order import Item, draw_numbers, order
from eval.survey.pairs import Pairs
from eval.survey.rating import plain_name
from eval.survey.serve import prepare
from eval.survey.server import SurveyServer
from robust_models.errors import UserError
from robust_models.runtime.command import run
from tests.tiny import tiny_pixels

NAMES = "airplane,automobile,bird"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """a.npz and b.npz: 20 images of 16 px with the same labels."""
    root = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate("ab"):
        np.savez(root / f"{name}.npz", arr_0=tiny_pixels(20, seed)[0], arr_1=np.arange(20) % 3)
    return root


def config(sets: Path, folder: Path, **more) -> SurveyConfig:
    return SurveyConfig(**{"before": sets / "a.npz", "after": sets / "b.npz", "out": folder / "answers.db", **more})


# ---------------------------------------------------------------------------------------------------------- the order


@given(st.integers(0, 2**32), st.text(max_size=40), st.integers(1, 30), st.floats(0, 0.5))
@settings(max_examples=50)
def test_each_pair_once_sides_balanced_checks_spread(seed, rater, count, checks):
    items = order(seed, rater, range(count), checks)
    pairs = [item for item in items if item.kind == "pair"]
    ruins = [i for i, item in enumerate(items) if item.kind == "check"]
    assert sorted(item.number for item in pairs) == list(range(count))
    assert abs(2 * sum(item.target == "left" for item in pairs) - count) <= 1
    assert len(ruins) == (max(1, round(count * checks / (1 - checks))) if checks else 0)
    for i, place in enumerate(ruins):
        assert len(items) * i // len(ruins) <= place < len(items) * (i + 1) // len(ruins)
    assert len({(item.kind, item.number) for item in items}) == len(items)


def test_order_and_sides_are_the_raters_own_and_repeat():
    ann, again, bob, other_seed = (
        order(*key, range(50), 0.1) for key in ((0, "ann"), (0, "ann"), (0, "bob"), (1, "ann"))
    )
    assert ann == again
    for other in (bob, other_seed):
        assert [item.number for item in ann] != [item.number for item in other]
        sides, theirs = ({i.number: i.target for i in items if i.kind == "pair"} for items in (ann, other))
        assert 10 < sum(sides[number] == theirs[number] for number in range(50)) < 40


def test_over_many_raters_sides_of_a_pair_and_of_checks_are_even():
    every = [item for rater in range(300) for item in order(0, str(rater), range(5), 0.2)]
    for kind in ("pair", "check"):
        left = [item.target == "left" for item in every if item.kind == kind and item.number == 3]
        assert abs(np.mean(left) - 0.5) < 4 * 0.5 / np.sqrt(len(left))
    intact = ["after" in (item.left, item.right) for item in every if item.kind == "check"]
    assert abs(np.mean(intact) - 0.5) < 4 * 0.5 / np.sqrt(len(intact))


def test_numbers_drawn():
    assert draw_numbers(0, 20, None) == list(range(20)) == draw_numbers(0, 20, 100)
    some = draw_numbers(0, 1000, 20)
    assert some == sorted(set(some))
    assert len(some) == 20
    assert some != draw_numbers(1, 1000, 20)


def test_an_order_of_today_is_that_of_tomorrow():
    """A survey may go on for months: what was drawn may not change with this code."""
    assert [(item.number, item.left) for item in order(0, "ann", range(4), 0.2)] == [
        (2, "after"),
        (3, "before"),
        (0, "before"),
        (1, "after"),
        (3, "after"),
    ]


# --------------------------------------------------------------------------------------------------------- the images


def test_images_reach_raters_exactly_and_alike(sets, tmp_path):
    """Of different files and depths: a compressed float set beside an uncompressed uint8 one."""
    x = np.load(sets / "b.npz")["arr_0"]
    np.savez_compressed(tmp_path / "b.npz", arr_0=(x / 255).astype(np.float32))
    pairs = prepare(config(sets, tmp_path, after=tmp_path / "b.npz", pairs=7)).pairs
    before = np.load(sets / "a.npz")["arr_0"]
    assert len(pairs.numbers) == 7
    for number in pairs.numbers:
        pngs = [pairs.png(number, shown) for shown in ("before", "after", "ruined")]
        assert len({len(png) for png in pngs}) == 1  # the length of an image tells nothing
        shown = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
        np.testing.assert_array_equal(shown[0], before[number])
        np.testing.assert_array_equal(shown[1], x[number])
        assert np.abs(shown[2].astype(int) - shown[0]).mean() > 30


def test_a_flat_image_is_ruined_too():
    flat = np.full((1, 8, 8, 3), 127, np.uint8)
    pairs = Pairs((0,), flat, flat)
    assert np.asarray(Image.open(io.BytesIO(pairs.png(0, "ruined")))).std() > 30


def test_folders_of_images_with_other_names_are_told_of(sets, tmp_path, capsys):
    for folder, first in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / folder / f"{first + i}.png")
    prepare(config(sets, tmp_path, before=tmp_path / "a", after=tmp_path / "b"))
    assert capsys.readouterr().err == "warning: image 0 is called 0 before and 1 after; pairs go by order\n"


# --------------------------------------------------------------------------------------------------------- the labels


def test_classes_by_number_by_name_or_none(sets, tmp_path):
    assert prepare(config(sets, tmp_path)).classes[4] == "1"
    named = prepare(config(sets, tmp_path / "named", class_names=NAMES, show_class=True))
    assert named.classes[4] == "automobile"
    assert {named.classes[i] for i in range(20)} == set(NAMES.split(","))
    np.savez(tmp_path / "a.npz", arr_0=np.load(sets / "a.npz")["arr_0"])
    unlabelled = {"before": tmp_path / "a.npz", "after": tmp_path / "a.npz"}
    assert prepare(config(sets, tmp_path / "no", **unlabelled)).classes[4] is None


def test_labels_from_files(sets, tmp_path):
    (tmp_path / "l.json").write_text(json.dumps(["cat"] * 19 + ["dog"]))
    assert prepare(config(sets, tmp_path, labels=tmp_path / "l.json")).classes[19] == "dog"
    (tmp_path / "l.csv").write_text("file,label\n" + "".join(f"{i:06d}.png,{i % 2}\n" for i in range(20)))
    found = prepare(config(sets, tmp_path / "csv", labels=tmp_path / "l.csv", class_names="cat,dog")).classes
    assert (found[18], found[19]) == ("cat", "dog")
    pixels = np.load(sets / "a.npz")["arr_0"]
    np.savez(tmp_path / "other.npz", arr_0=pixels, arr_1=np.full(20, 2))
    found = prepare(config(sets, tmp_path / "set", labels=tmp_path / "other.npz")).classes
    assert set(found.values()) == {"2"}


def test_every_message_of_sets_and_labels(sets, tmp_path):
    x = np.load(sets / "a.npz")["arr_0"]
    files = {
        "few": {"arr_0": x[:5]},
        "small": {"arr_0": x[:, :8, :8]},
        "plain": {"arr_0": x},
        "other": {"arr_0": x, "arr_1": (np.arange(20) + 1) % 3},
        "few_labels": {"arr_0": x[:5], "arr_1": np.arange(5)},
    }
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "few.json").write_text('["cat"]')
    (tmp_path / "unlike.json").write_text('{"nobody": "cat"}')
    (tmp_path / "broken.json").write_text("[")

    def refused(match: str, **more) -> None:
        with pytest.raises(UserError, match=match) as error:
            prepare(config(sets, tmp_path, **{k: tmp_path / v if "." in str(v) else v for k, v in more.items()}))
        assert "\n" not in str(error.value)

    refused(r"^after: .*few.npz has 5 images, .*a.npz 20", after="few.npz")
    refused(r"^after: images of .*small.npz are 8x8, of .*a.npz 16x16", after="small.npz")
    refused(r"no such file or folder", after="missing.npz")
    refused(r"^labels: image 0 is of class 0 in .*a.npz and 1 in .*other.npz; .*--labels", after="other.npz")
    refused(r"^labels: .*plain.npz has none", labels="plain.npz")
    refused(r"^labels: .*few_labels.npz has 5 images, .*a.npz 20", labels="few_labels.npz")
    refused(r"^labels: .*few.json has 1 labels without names for 20 images", labels="few.json")
    refused(r"^labels: .*unlike.json has no label for 20 of 20 images, the first 000000", labels="unlike.json")
    refused(r"^labels: .*broken.json is not JSON", labels="broken.json")
    refused(r"^class-names: labels run from 0 to 2, but there are 2 names", class_names="cat,dog")
    refused(r"^show-class: the labels have no names; give --class-names", show_class=True)
    refused(r"^show-class: neither set has labels", show_class=True, before="plain.npz", after="plain.npz")
    assert not (tmp_path / "answers.db").exists()


def test_images_that_would_not_fit_in_memory(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.survey.pairs._MAX_BYTES", 2 * 7 * 16 * 16 * 3)
    with pytest.raises(UserError, match=r"^pairs: 20 would take 0.0 GiB of memory; give --pairs 7$"):
        prepare(config(sets, tmp_path))
    prepare(config(sets, tmp_path, pairs=7))


# ------------------------------------------------------------------------------------------------ the file of answers


def test_answers_go_on_with_the_same_survey_only(sets, tmp_path):
    first = prepare(config(sets, tmp_path, pairs=10))
    first.store.add("ann", Item(3, "after", "before"), "left", 1000)
    assert prepare(config(sets, tmp_path, pairs=10)).store.count() == (1, 1)
    np.savez(tmp_path / "other.npz", arr_0=255 - np.load(sets / "b.npz")["arr_0"], arr_1=np.arange(20) % 3)

    def refused(match: str, **more) -> None:
        with pytest.raises(UserError, match=match):
            prepare(config(sets, tmp_path, **{"pairs": 10, **more}))

    begun = r"answers.db was begun with"
    refused(rf"^pairs: .*{begun} 10, now it is null; give the same, or another --out", pairs=None)
    refused(rf"^seed: .*{begun} 0, now it is 1", seed=1)
    refused(rf"^checks: .*{begun} 0.1, now it is 0.2", checks=0.2)
    refused(rf"^ties: .*{begun} true, now it is false", ties=False)
    refused(rf'^question: .*{begun} "Which image looks more real\?", now it is "Which\?"', question="Which?")
    refused(rf"^after: .*{begun} other images", after=tmp_path / "other.npz")
    refused(rf"^before: .*{begun} other images", before=tmp_path / "other.npz")
    refused(rf"^labels: .*{begun} other classes", class_names=NAMES)
    assert prepare(config(sets, tmp_path, pairs=10)).store.count() == (1, 1)


def test_a_file_that_is_something_else_is_left_alone(sets, tmp_path):
    text, table, newer = (tmp_path / name for name in ("text", "table", "newer"))
    text.write_text("my notes, which are longer than the header of a database\n" * 10)
    with sqlite3.connect(table) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    prepare(config(sets, tmp_path, out=newer))
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE survey SET value = '2' WHERE key = 'format'")
    connection.close()
    before = {path: path.read_bytes() for path in (text, table)}
    for path, reason in ((text, "not a database"), (table, "no such table: survey"), (tmp_path, "unable to open")):
        with pytest.raises(UserError, match=f"^out: .* cannot be used as a file of answers .*{reason}"):
            prepare(config(sets, tmp_path, out=path))
    assert {path: path.read_bytes() for path in (text, table)} == before
    with pytest.raises(UserError, match="answers of format 2; this version reads format 1"):
        prepare(config(sets, tmp_path, out=newer))


def test_an_empty_file_left_by_a_kill_is_begun(sets, tmp_path):
    (tmp_path / "answers.db").touch()
    assert prepare(config(sets, tmp_path)).store.count() == (0, 0)


def test_names_of_raters():
    assert plain_name("  Ann\t Lee ") == plain_name("ANN LEE") == "ann lee"
    assert plain_name("Zoë") == plain_name("zoe\u0308")
    assert plain_name("x" * 40) == "x" * 40
    assert [plain_name(text) for text in ("", "  ", "x" * 41, "x" * 1000, "a\x00b")] == [None] * 5


# ---------------------------------------------------------------------------------------------------- the command line


def words(sets: Path, tmp_path: Path, *more: str) -> list[str]:
    paths = ("--before", sets / "a.npz", "--after", sets / "b.npz", "--out", tmp_path / "answers.db", "--port", 0)
    return [*map(str, paths), *more]


def test_ctrl_c_ends_the_survey_and_tells(sets, tmp_path, capsys, monkeypatch):
    def stopped(_: SurveyServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SurveyServer, "serve_forever", stopped)
    assert run(SURVEY, words(sets, tmp_path, "--class-names", NAMES)) == 0
    out, err = capsys.readouterr()
    assert out == f"0 answers of 0 raters in {tmp_path}/answers.db; bigroc survey report {tmp_path}/answers.db\n"
    assert err.startswith("survey at http://127.0.0.1:")
    assert run(SURVEY, words(sets, tmp_path, "--class-names", NAMES, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 0


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--checks", "0.6"], "checks: input should be less than or equal to 0.5; got 0.6"),
        (["--pairs", "0"], "pairs: input should be greater than or equal to 1; got 0"),
        (["--port", "70000"], "port: input should be less than or equal to 65535; got 70000"),
        (["--question", " "], "question: has 0 characters; give 1 to 200"),
        (["--question", "A real {class}?"], "question: says {class}; add --show-class, which fills it in"),
        (
            ["--question", "Which?", "--show-class"],
            "question: --show-class names the class where the question says {class}; put it in",
        ),
        (["--befor", "x"], "--befor: no such flag; did you mean --before?"),
    ],
)
def test_bad_flags_are_one_line(sets, tmp_path, capsys, more, line):
    assert run(SURVEY, words(sets, tmp_path, *more)) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_taken_port_is_one_line(sets, tmp_path, capsys):
    with SurveyServer(prepare(config(sets, tmp_path)), ties=True, port=0) as server:
        port = server.server_address[1]
        assert run(SURVEY, words(sets, tmp_path, "--port", str(port))) == 2
    assert f"error: port: {port} on 127.0.0.1 cannot be had (Address already in use)" in capsys.readouterr().err


def test_help_names_the_report(capsys):
    with pytest.raises(SystemExit):
        run(SURVEY, ["--help"])
    assert "bigroc survey report answers.db" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "count", "shown", "said"),
    [
        (32, 10, "automobile", "those of CIFAR-10"),
        (32, 9, "1", "numbers, 0 to 8"),
        (32, 12, "1", "numbers, 0 to 11"),
        (28, 10, "1", "numbers, 0 to 9"),
        (16, 3, "1", "numbers, 0 to 2"),
    ],
)
def test_names_that_nothing_gives_are_assumed_and_said_to_be(tmp_path, capsys, size, count, shown, said):
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels, arr_1=np.arange(12) % count)
    same = {"before": tmp_path / "a.npz", "after": tmp_path / "a.npz"}
    assert prepare(config(tmp_path, tmp_path, **same)).classes[1] == shown
    err = capsys.readouterr().err
    assert err == f"class names: none are given, taken as {said}; --class-names cat,dog,...\n"
    given = ",".join(f"name {i}" for i in range(count))
    assert prepare(config(tmp_path, tmp_path / "given", **same, class_names=given)).classes[1] == "name 1"
    assert capsys.readouterr().err == ""
