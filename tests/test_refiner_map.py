"""The map of refiners: what its table marks, and that it reads what a study writes."""

import json

import pytest

from benchmarks.refiner_map import entry, main, table

JUDGES = ("inception-768", "efficientnet-lite0-128")


def cell(images="VAE", eps=0.0, classifier=None, changes=(), raw=(0.002, 0.5)):
    found = {"images": images, "eps": eps, "classifier": classifier}
    for suffix, whole, interval in zip(("", "_2"), raw, changes or ((0, 0), (0, 0)), strict=True):
        low, high = interval
        middle = (low + high) / 2
        found |= {f"kid{suffix}": whole + middle, f"less_raw{suffix}": middle}
        found |= {f"less_raw{suffix}_low": low, f"less_raw{suffix}_high": high}
    return found


@pytest.mark.parametrize(
    ("changes", "marked"),
    [
        (((-0.003, -0.001), (-0.3, -0.1)), "**-2, -200**"),
        (((0.001, 0.003), (0.1, 0.3)), "**+2, +200**"),
        (((-0.003, -0.001), (0.1, 0.3)), "-2, +200"),
        (((-0.003, 0.001), (-0.3, -0.1)), "(-1, -200)"),
    ],
)
def test_bold_is_what_all_judges_see_and_brackets_what_one_does_not(changes, marked):
    assert entry(cell(classifier="a", eps=1.0, changes=changes), JUDGES) == marked


def test_a_row_for_each_set_and_eps_and_a_column_for_each_classifier():
    changes = ((-0.001, -0.0005), (-0.2, -0.1))
    cells = [cell(), cell(eps=1.0, classifier="a", changes=changes), cell(eps=3.0, classifier="b", changes=changes)]
    header, _, *rows = table(cells, JUDGES).splitlines()
    assert header == "| images (raw) | eps | a | b |"
    assert rows == ["| VAE (2, 500) | 1 | **-0.75, -150** | - |", "| VAE (2, 500) | 3 | - | **-0.75, -150** |"]


def test_studies_are_joined_and_drawn_and_have_to_have_the_same_judges(tmp_path, monkeypatch, capsys):
    changes = ((-0.001, -0.0005), (-0.2, -0.1))
    for name, judges in (("one", JUDGES), ("two", JUDGES), ("other", JUDGES[::-1])):
        found = {"judge": judges[0], "other_judges": [judges[1]]}
        unfinished = {"images": name, "eps": 5.0, "classifier": "a", "error": "not run yet"}
        found["cells"] = [unfinished, cell(name), cell(name, 1.0, "a", changes), cell(name, 3.0, "a", changes)]
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    monkeypatch.setattr(
        "sys.argv", ["map", *(str(tmp_path / f"{n}.json") for n in ("one", "two")), "--figure", str(tmp_path / "m.png")]
    )
    main()
    shown = capsys.readouterr().out
    assert shown.count("| one (2, 500) |") == shown.count("| two (2, 500) |") == 2
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("sys.argv", ["map", *(str(tmp_path / f"{n}.json") for n in ("one", "other"))])
    with pytest.raises(SystemExit):
        main()
    assert "the studies have other judges" in capsys.readouterr().err
