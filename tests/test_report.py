import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.quality.metrics import METRICS, least_images
from eval.study.report import write_report
from eval.study.report.cautions import cautions
from eval.study.report.compare import Difference, Estimate
from eval.study.report.digest import BEST, TIED, Digest, digested
from eval.study.report.figures import figures
from eval.study.report.latex import latex, latex_text
from eval.study.report.page import page_text
from eval.study.report.pictures import SHOWN, around_grey
from eval.study.report.summary import answer, standing, summary
from eval.study.report.words import cell_words, eps_words, listed, number_words, places, varied
from eval.study.results import Accuracy, Axes, CellResult, ClassifierResult, Provenance, Results
from robust_models import UserError
from robust_models.runtime.files import sha256_of

N, DIM, RESAMPLES = 40, 6, 40
RAW = Axes("vae")


def refined(classifier: str, eps: float = 1.0, **others) -> Axes:
    return Axes(**{"images": "vae", "classifier": classifier, "eps": eps, "steps": 7, "targets": "pseudo"} | others)


class Lab:
    """Makes results: a cell's gain is how far it moves the images towards the reference, 1 all the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        self.base = self.rng.standard_normal((N, DIM))
        self.images = self.rng.integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
        self.reference = folder / "reference.npz"
        np.savez(self.reference, mu=np.zeros(DIM), sigma=np.eye(DIM))

    def cell(self, axes: Axes, gain: float = 0.0, *, noise: float = 0.01, **scores: float) -> CellResult:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.npz"
        features = self.base + (1 - gain) + noise * self.rng.standard_normal((N, DIM))
        np.savez(path, features=features.astype(np.float32), examples_u8=self.images)
        return CellResult(axes, N, scores, path, self.provenance(path.stem))

    def classifier(self, name: str, robust: float = 0.5, threat_model: str = "l2 eps 0.5") -> ClassifierResult:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.npz"
        gradient = self.rng.standard_normal(self.images.shape).astype(np.float32)
        np.savez(path, x_u8=self.images, y=np.arange(10) % 2, gradient=gradient)
        accuracies = (
            Accuracy("l2", 0.0, 0.9, (0.88, 0.92), ""),
            Accuracy("l2", 0.5, robust, (robust - 0.01, robust + 0.01), "PGD-20"),
        )
        made_of = self.provenance(f"of {path.stem}")
        return ClassifierResult(name, "net", 1000, 8, ("cat", "dog"), threat_model, 500, accuracies, path, made_of)

    def provenance(self, key: str) -> Provenance:
        inputs = {"checkpoint": f"c0ffee{key}", "images": f"beef{key}"}
        return Provenance(key, f"repeat --only {key}", {"key": key}, inputs, {"torch": "2.9"}, "a machine", 1.0)

    def results(self, *cells: CellResult, classifiers: tuple[ClassifierResult, ...] = (), **others) -> Results:
        defaults = {
            "title": "Title",
            "question": "Which?",
            "vary": ("eps",),
            "judge": "classifier:judge",
            "reference": self.reference,
            "reference_words": "the reference",
            "classifiers": classifiers,
            "cells": cells,
            "command": "study --config x",
        }
        return Results(**(defaults | others))

    def full(self, standard: str = "standard", robust: str = "robust") -> Results:
        """Two image sets, two classifiers, three eps; every score."""
        cells = []
        for images in ("vae", "gan"):
            cells.append(self.cell(Axes(images), inception_score=2.0, precision=0.5, recall=0.4, judge_agreement=0.5))
            for name, gain in ((standard, -0.3), (robust, 0.4)):
                for eps in (0.5, 1.0, 2.0):
                    scores = {"inception_score": 2 + eps, "precision": 0.6, "recall": 0.4 - eps / 10}
                    agreement = {"judge_agreement": 0.6, "target_agreement": 0.75, "distance": eps}
                    axes = refined(name, eps, images=images)
                    cells.append(self.cell(axes, gain * eps / 2, **scores, **agreement))
        classifiers = (self.classifier(standard, 0.01, "none"), self.classifier(robust, 0.6))
        return self.results(*cells, classifiers=classifiers)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Results, dict[str, str]]:
    """A whole study and its report."""
    (folder := tmp_path_factory.mktemp("full") / "lab").mkdir()
    results = Lab(folder).full()
    return results, written(results, folder.parent / "out")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "lab").mkdir()
    return Lab(tmp_path / "lab")


class Page(HTMLParser):
    """Ids, links, sources, tag names and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "src", "srcset", "xlink:href", "action", "data", "poster"):
                self.links.append(value)

    def handle_data(self, data):
        if self.lasttag != "style":
            self.words.append(data)


def written(results: Results, out: Path) -> dict[str, str]:
    paths = write_report(results, out, resamples=RESAMPLES)
    return {kind: content(Path(path)) for kind, path in paths.items()}


def content(path: Path) -> str:
    """Of a file; of a folder, the names and hashes of its files."""
    if path.is_dir():
        return "\n".join(f"{file.name} {sha256_of(file)}" for file in sorted(path.iterdir()))
    return path.read_text(encoding="utf-8")


def told(results: Results) -> Digest:
    return digested(results, resamples=RESAMPLES)


def only(sentences: dict[str, str]) -> str:
    (text,) = sentences.values()
    return text


def test_four_whole_files_are_written_where_asked(lab, tmp_path):
    paths = write_report(lab.results(lab.cell(RAW)), tmp_path / "new" / "out", resamples=RESAMPLES)
    names = {"html": "report.html", "csv": "results.csv", "json": "results.json", "tex": "table.tex"}
    assert paths == {kind: str(tmp_path / "new" / "out" / name) for kind, name in names.items()}
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(names.values())


def test_the_same_results_give_the_same_bytes(full, tmp_path):
    results, found = full
    assert written(results, tmp_path) == found


def test_the_page_needs_nothing_but_itself(full):
    text = full[1]["html"]
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form"}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_every_link_on_the_page_leads_somewhere_and_every_cell_and_classifier_is_linked(full):
    results, found = full
    page = Page(found["html"])
    assert len(page.ids) == len(set(page.ids))
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)
    assert {f"cell-{i}" for i in range(1, len(results.cells) + 1)} | {"classifier-1", "classifier-2"} <= targets


def test_the_details_of_a_cell_say_how_to_repeat_it(full):
    results, found = full
    text = Page(found["html"]).text
    for part in (*results.cells, *results.classifiers):
        assert part.provenance.command in text
        assert part.provenance.inputs["checkpoint"] in text
        assert part.provenance.inputs["images"] in text


def test_a_drawing_follows_the_theme_and_its_points_lead_to_their_cells(full):
    drawn = figures(told(full[0]))
    assert [figure.title for figure in drawn] == [
        "Fréchet distance against eps",
        "Fréchet distance against robust accuracy",
        "Other scores against eps",
        "Precision against recall",
    ]
    for figure in drawn:
        for panel in figure.panels:
            assert "#0102" not in panel.drawing.page
            assert "var(--series-1)" in panel.drawing.page
            assert 'href="#cell-' in panel.drawing.page
    assert "<title>robust, eps 2: Fréchet distance " in drawn[0].panels[0].drawing.page
    assert [panel.title for panel in drawn[0].panels] == ["vae", "vae, paired", "gan", "gan, paired"]


def test_radii_of_two_norms_do_not_share_a_scale(lab):
    eps = 8 / 255
    cells = [
        lab.cell(refined("a", radius, norm=norm), 0.1)
        for norm, radii in (("l2", (0.5, 1.0)), ("linf", (eps, 2 * eps)))
        for radius in radii
    ]
    (figure, *_) = figures(told(lab.results(lab.cell(RAW), *cells)))
    assert [panel.title for panel in figure.panels] == ["vae, L2", "vae, L2, paired", "vae, L∞", "vae, L∞, paired"]


@pytest.mark.parametrize(
    ("axis", "values", "words"), [("steps", (1, 7, 20), "steps"), ("targets", ("given", "pseudo", "balanced"), "given")]
)
def test_an_axis_of_interest_has_its_plot(lab, axis, values, words):
    cells = [lab.cell(refined("a", **{axis: value}), 0.2) for value in values]
    (figure,) = figures(told(lab.results(lab.cell(RAW), *cells, vary=(axis,))))
    assert figure.title == f"Fréchet distance against {axis}"
    assert f">{words}</text>" in figure.panels[0].drawing.page


NAMES = ('<b>&"', "a_b%", "$x^2$\\", "[x]*~{#}", "ünï|cøde", "--><script>")


def test_names_are_escaped(lab, tmp_path):
    cells = [lab.cell(refined(name, images='<i>"&'), 0.1) for name in NAMES]
    classifiers = tuple(lab.classifier(name) for name in NAMES)
    raw = lab.cell(Axes('<i>"&'))
    found = written(lab.results(raw, *cells, classifiers=classifiers, title="</title><u>"), tmp_path)
    page = Page(found["html"])
    assert not page.tags & {"b", "i", "u", "script"}
    assert all(" ".join(name.split()) in page.text for name in (*NAMES, '<i>"&', "</title><u>"))
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    assert [row["classifier"] for row in rows] == ["", *NAMES]
    assert [cell["classifier"] for cell in json.loads(found["json"])["cells"]] == [None, *NAMES]
    assert all(latex(name) in found["tex"] for name in NAMES)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b%", r"a\_b\%"),
        ("$&#{}", r"\$\&\#\{\}"),
        ("\\~^", r"\textbackslash{}\textasciitilde{}\textasciicircum{}"),
        ("[1]*", "{[}1]{*}"),  # neither an option nor a star of the line break before it
        ("two\nlines", "two lines"),
    ],
)
def test_latex_prints_what_is_written(text, escaped):
    assert latex(text) == escaped


def test_the_latex_table_is_a_plain_tabular(lab):
    text = latex_text(told(lab.full("[st]_%", "ro&bust")))
    begun = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    columns = len(begun[1])
    body = text[begun.end() : text.index(r"\end{tabular}")].replace(r"\&", "")
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + 2 * (1 + 7)
    assert all(line.count("&") + 1 == columns for line in lines if r"\multicolumn" not in line)
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert not any(line.startswith(("[", "*")) for line in lines)
    assert text.isascii()


def test_the_numbers_of_all_files_agree(full):
    results, found = full
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    cells = json.loads(found["json"])["cells"]
    page, tex = Page(found["html"]).text, found["tex"]
    digest = told(results)
    decimals = places(row.distance for row in digest.rows)
    for row, line, cell in zip(digest.rows, rows, cells, strict=True):
        low, high = row.distance.interval
        for name, value in {"frechet": row.distance.value, "frechet_low": low, "frechet_high": high}.items():
            assert float(line[name]) == cell[name] == value
        for name, value in row.cell.scores.items():
            assert float(line[name]) == cell[name] == value
        assert line["mark"] == cell["mark"] == row.mark
        words = number_words(row.distance, decimals)
        assert words in page.replace(" ★", "")
        assert latex(words) in re.sub(r"\\textbf\{([^}]*)\}\$\^\{\\\w+\}\$", r"\1", tex)
        if row.from_raw:
            assert float(line["less_raw"]) == cell["less_raw"] == row.from_raw.value


def test_the_page_of_24_cells_of_large_images_is_small(lab, tmp_path):
    lab.images = lab.rng.integers(0, 256, (10, 3, 128, 128), dtype=np.uint8)  # noise: nothing packs worse
    cells = [lab.cell(refined(name, eps), eps / 9) for name in "abcd" for eps in (1, 2, 3, 4, 5, 6)]
    classifiers = tuple(lab.classifier(name) for name in "abcd")
    write_report(lab.results(lab.cell(RAW), *cells, classifiers=classifiers), tmp_path, resamples=2)
    assert (tmp_path / "report.html").stat().st_size <= 8 << 20


def test_failed_and_missing_cells_are_said(lab, tmp_path):
    failed = CellResult(refined("a", 2.0), error="checkpoint: a.pt is <gone>; train it")
    broken = ClassifierResult("b", error="out of memory")
    waiting = ClassifierResult("c", error="not trained yet", pending=True)
    cells = (lab.cell(RAW), lab.cell(refined("a", 1.0), 0.3), failed)
    results = lab.results(*cells, classifiers=(lab.classifier("a"), broken, waiting), missing=4)
    found = written(results, tmp_path)
    text = Page(found["html"]).text
    assert "2 of 7 cells: 1 cell failed, 4 cells not run yet." in text
    assert "vae, a, eps 2 failed: checkpoint: a.pt is <gone>; train it" in text
    assert "b failed: out of memory" in text
    assert "c : not trained yet" in text
    assert json.loads(found["json"])["standing"] == "2 of 7 cells: 1 cell failed, 4 cells not run yet"
    assert list(csv.DictReader(io.StringIO(found["csv"])))[2]["error"] == failed.error
    assert "failed" in found["tex"]


def test_a_whole_study_is_called_so(lab):
    assert standing(told(lab.results(lab.cell(RAW)))) == "1 of 1 cell"


def test_a_significant_gain_is_told_with_its_interval(lab):
    digest = told(lab.results(lab.cell(RAW), lab.cell(refined("a", 1.0), 0.2), lab.cell(refined("a", 2.0), 0.5)))
    raw, _, best = digest.rows
    assert best.mark == BEST
    text = only(summary(digest))
    decimals = places(row.distance for row in digest.rows)
    assert text.startswith(
        f"Refinement lowers the Fréchet distance from {number_words(raw.distance, decimals)} to "
        f"{number_words(best.distance, decimals)} with a, eps 2, by "
    )
    assert f"{-best.from_raw.value:.2f}" in text
    assert text.endswith("It is significantly lower than that of every other cell measured.")


def test_what_could_be_chance_is_not_told_as_a_gain(lab):
    digest = told(lab.results(lab.cell(RAW), lab.cell(refined("a"), 0.0, noise=0.3)))
    assert not digest.rows[1].from_raw.is_significant
    assert [row.mark for row in digest.rows] == ["", ""]
    text = only(summary(digest))
    assert text.startswith("No refinement lowers the Fréchet distance of the raw images, ")
    assert "significantly; the lowest after it is" in text


def test_refinement_that_harms_is_told_as_harm(lab):
    digest = told(lab.results(lab.cell(RAW), lab.cell(refined("a", 1.0), -0.2), lab.cell(refined("b", 1.0), -0.5)))
    assert digest.rows[0].mark == BEST
    text = only(summary(digest))
    assert text.startswith("No refinement lowers the Fréchet distance of the raw images, ")
    assert "with a, higher by " in text
    assert "Each at its best setting, a and b raise it significantly." in text


def test_cells_that_are_not_told_apart_share_the_mark(lab):
    cells = [lab.cell(refined(name), 0.5, noise=0.2) for name in "ab"]
    digest = told(lab.results(lab.cell(RAW), *cells))
    assert [row.mark for row in digest.rows] == ["", TIED, TIED]
    other = max(digest.rows[1:], key=lambda row: row.distance.value)
    assert f"Not significantly different from the lowest: {other.label}." in only(summary(digest))


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.1, r"The best robust classifier \(robust\) ends at a distance lower by \d\.\d+ \[.*\] than the best"),
        (0.9, r"ends at a distance higher by \d\.\d+ \[.*\] than the best standard one \(standard\)\."),
        (0.5, r"does not differ significantly from the best standard one \(standard\): "),
    ],
)
def test_robust_and_standard_classifiers_are_compared(lab, gain, words):
    cells = [lab.cell(RAW), lab.cell(refined("robust"), 0.5, noise=0.1), lab.cell(refined("standard"), gain, noise=0.1)]
    classifiers = (lab.classifier("robust"), lab.classifier("standard", threat_model="none"))
    assert re.search(words, only(summary(told(lab.results(*cells, classifiers=classifiers)))))


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.2, 0.8, 0.2, 0.8), r"significantly better on vae \(.*\) and gan \(.*\)\."),
        ((0.8, 0.2, 0.8, 0.2), r"significantly worse on vae \(.*\) and gan \(.*\)\."),
        ((0.5, 0.5, 0.2, 0.8), r"significantly better on gan \(.*\); no significant difference on vae \(.*\)\."),
    ],
)
def test_of_two_classifiers_the_page_begins_with_whether_the_second_is_better(lab, gains, verdict):
    axes = [refined(name, images=images) for images in ("vae", "gan") for name in ("before", "after")]
    cells = [lab.cell(RAW), lab.cell(Axes("gan"))]
    cells += [lab.cell(axis, gain, noise=0.1) for axis, gain in zip(axes, gains, strict=True)]
    digest = told(lab.results(*cells, vary=("classifier", "loss")))
    text = answer(digest)
    assert re.fullmatch(f"after against before, each at its best, by .*judge: {verdict}", text)
    page = page_text(digest)
    assert page.index(html.escape(text, quote=False)) < page.index("<strong>vae.")
    assert answer(told(lab.results(*cells, vary=("eps",)))) == ""
    third = lab.cell(refined("third"), 0.5)
    assert answer(told(lab.results(*cells, third, vary=("classifier",)))) == ""


def cautious(lab, *cells: CellResult, **changed: Any) -> str:
    classifiers = changed.pop("classifiers", ())
    return " ".join(cautions(told(replace(lab.results(*cells, classifiers=classifiers), **changed))))


def test_a_judge_of_the_refiners_classes_is_said(lab):
    cells = lab.cell(RAW), lab.cell(refined("one"), 0.5)
    assert "was trained on the same classes as one:" in cautious(lab, *cells, judge="classifier:x", kin=("one",))
    assert "same classes" not in cautious(lab, *cells, judge="inception")


def weak_or_not(name: str, clean: float, attacked: float) -> ClassifierResult:
    accuracies = tuple(
        Accuracy("l2" if eps else "", eps, value, (value, value), "PGD")
        for eps, value in ((0.0, clean), (0.5, attacked))
    )
    return ClassifierResult(name, threat_model="none", accuracies=accuracies)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (weak_or_not("a", 0.9, 0.02), "a (2 % right at L2 eps 0.5) is not robust"),
        (weak_or_not("a", 0.9, 0.46), ""),
        (ClassifierResult("a", threat_model="none"), "a (trained without attacks) is not robust"),
        (ClassifierResult("a", threat_model="l2 eps 0.5"), ""),
        (weak_or_not("unused", 0.9, 0.0), ""),
    ],
)
def test_a_refiner_that_is_not_robust_is_said(lab, one, words):
    found = cautious(lab, lab.cell(RAW), lab.cell(refined("a"), 0.5), classifiers=(one,))
    assert words in found
    assert bool(words) == ("not robust" in found)


def test_few_images_are_said_with_the_number_that_is_wanted(lab):
    found = cautious(lab, lab.cell(RAW), lab.cell(refined("a"), 0.5))
    least = least_images(METRICS["fid"], DIM)
    assert (f"{N} images are few for a Fréchet distance, which wants {least:,}" in found) == (least > N)


def test_a_ball_larger_than_the_way_to_the_next_real_image_is_said(lab):
    cells = lab.cell(RAW), lab.cell(refined("a", 3.0), 0.5)
    assert "eps 3 in L2 exceeds 2.5, the median distance" in cautious(lab, *cells, neighbours={"l2": 2.5})
    assert "exceeds" not in cautious(lab, *cells, neighbours={"l2": 3.5, "linf": 0.1})


def test_a_judge_with_limits_is_not_named_without_them(lab):
    cells = lab.cell(RAW), lab.cell(refined("a"), 0.5)
    assert "efficientnet-lite0-128 is an ImageNet classifier at 128 px" in cautious(
        lab, *cells, judge="efficientnet-lite0-128"
    )
    assert "ImageNet" not in cautious(lab, *cells, judge="inception-768")


def test_every_plot_is_a_file_in_the_papers_colours(full, tmp_path):
    results, _ = full
    folder = Path(write_report(results, tmp_path, resamples=RESAMPLES)["figures"])
    plots = [panel for figure in figures(told(results)) for panel in figure.panels]
    assert len(list(folder.iterdir())) == 2 * len(plots)
    assert (folder / "frechet-distance-against-eps-vae-paired.pdf").is_file()
    for file in folder.glob("*.svg"):
        text = file.read_text()
        assert text.startswith("<?xml")
        assert "#0102" not in text
        assert "#0072b2" in text
    for file in folder.glob("*.pdf"):
        assert file.read_bytes()[:5] == b"%PDF-"
        assert _colours(file.read_bytes()).isdisjoint(_rgb("#010203"))


def _rgb(colour: str) -> set[str]:
    return {" ".join(f"{int(colour[i : i + 2], 16) / 255:.4g}" for i in (1, 3, 5))}


def _colours(pdf: bytes) -> set[str]:
    """Every colour that a PDF of matplotlib sets, as "r g b"."""
    found = set()
    for packed in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            text = zlib.decompress(packed).decode("latin-1")
        except zlib.error:
            continue
        for numbers in re.findall(r"([0-9.]+ [0-9.]+ [0-9.]+) (?:rg|RG)", text):
            found.add(" ".join(f"{float(number):.4g}" for number in numbers.split()))
    assert found
    return found


def test_the_page_begins_with_its_contents_and_the_images(full):
    text = full[1]["html"]
    order = [text.index(part) for part in ('aria-label="Contents"', 'id="summary"', 'id="images"', 'id="setting"')]
    assert order == sorted(order)
    for anchor in ("summary", "images", "quality", "figure-1", "provenance"):
        assert f'<a href="#{anchor}"' in text


def test_the_latex_table_compiles(full, tmp_path):
    """In a document of its own, with booktabs where that is installed."""
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("no pdflatex")
    (tmp_path / "table.tex").write_text(full[1]["tex"], encoding="utf-8")
    for name, use in (("plain", ""), ("booktabs", r"\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{}")):
        document = rf"\documentclass{{article}}{use}\begin{{document}}\small\input{{table}}\end{{document}}"
        (tmp_path / f"{name}.tex").write_text(document)
        command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / f"{name}.pdf").is_file()


def test_without_raw_images_nothing_is_said_about_gains(lab):
    text = only(summary(told(lab.results(lab.cell(refined("a", 1.0), 0.2), lab.cell(refined("a", 2.0), 0.5)))))
    assert text.startswith("The lowest Fréchet distance is ")
    assert "the raw images' is not known" in text


def test_scores_without_features_have_no_interval_and_are_not_compared(lab):
    cell = CellResult(refined("a"), N, {"frechet": 0.001})
    digest = told(lab.results(lab.cell(RAW), lab.cell(refined("b"), 0.3), cell))
    assert digest.rows[2].distance == Estimate(0.001, None)
    assert digest.rows[2].mark == ""
    assert "not compared" in only(summary(digest))


SMALLEST = {
    "no cells": lambda lab: lab.results(),
    "raw only": lambda lab: lab.results(lab.cell(RAW)),
    "failed only": lambda lab: lab.results(CellResult(RAW, error="no"), CellResult(refined("a"), error="no")),
    "one of each": lambda lab: lab.results(
        lab.cell(RAW), lab.cell(refined("a"), 0.3), classifiers=(lab.classifier("a"),)
    ),
    "unknown classifier": lambda lab: lab.results(lab.cell(RAW), lab.cell(refined("a"), 0.3)),
    "no raw": lambda lab: lab.results(lab.cell(refined("a"), 0.3), lab.cell(refined("b"), 0.4), vary=("classifier",)),
    "no numbers": lambda lab: lab.results(lab.cell(RAW, precision=float("nan"), recall=float("inf"))),
    "no attacks": lambda lab: lab.results(
        lab.cell(RAW), lab.cell(refined("a"), 0.3), classifiers=(ClassifierResult("a"), ClassifierResult("unused"))
    ),
    "no provenance": lambda lab: lab.results(replace(lab.cell(RAW), provenance=None)),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_page_is_made_of_whatever_there_is(lab, tmp_path, name):
    found = written(SMALLEST[name](lab), tmp_path)
    page = Page(found["html"])
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    json.loads(found["json"], parse_constant=pytest.fail)
    assert "nan" not in page.text.split()


def test_a_reference_that_is_none_is_refused(lab, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros(3))
    with pytest.raises(UserError, match=r"reference: .*other.npz holds no statistics \(mu, sigma\); give an .npz"):
        written(lab.results(lab.cell(RAW), reference=other), tmp_path)


def test_strips_hold_the_pixels(full):
    results, found = full
    images = np.load(results.cells[0].arrays)["examples_u8"]
    first = re.search(r'src="data:image/png;base64,([^"]+)" alt="8 images of vae: raw"', found["html"])
    with Image.open(io.BytesIO(base64.b64decode(first[1]))) as strip:
        pixels = np.asarray(strip.convert("RGB")).transpose(2, 0, 1)
    assert pixels.shape == (3, 8, 9 * SHOWN - 1)
    for i in range(SHOWN):
        np.testing.assert_array_equal(pixels[:, :, 9 * i : 9 * i + 8], images[i])


def test_gradients_lie_symmetric_around_grey_with_a_scale_of_their_own():
    gradient = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    shown = around_grey(gradient).astype(int)
    assert (around_grey(np.zeros((1, 3, 2, 2))) == 128).all()
    np.testing.assert_array_equal(around_grey(-gradient), 256 - shown)
    np.testing.assert_array_equal(around_grey(gradient * np.array([1, 10, 1e-6])[:, None, None, None]), shown)
    strong = np.ones((1, 3, 4, 4))
    strong[0, 0, 0, 0] = 1e6
    assert around_grey(strong)[0, 0, 0, 0] == 255


@pytest.mark.parametrize(
    ("number", "decimals", "signed", "words"),
    [
        (Estimate(41.236, (40.12, 42.51)), 1, False, "41.2 [40.1, 42.5]"),
        (Estimate(3.0, None), 2, False, "3.00"),
        (None, 2, False, "\N{EN DASH}"),
        (Difference(-1.25, (-2.0, 0.0)), 1, True, "\N{MINUS SIGN}1.2 [\N{MINUS SIGN}2.0, 0.0]"),
        (Difference(0.5, (0.25, 0.75)), 2, True, "+0.50 [+0.25, +0.75]"),
    ],
)
def test_numbers_in_words(number, decimals, signed, words):
    assert number_words(number, decimals, signed=signed) == words


@pytest.mark.parametrize(("width", "decimals"), [(230, 0), (2.3, 1), (0.23, 2), (0.023, 3)])
def test_decimals_follow_the_intervals(width, decimals):
    assert places([Estimate(0, (-width, width)), None, Estimate(7, None)]) == decimals


def test_cells_in_words():
    cells = [CellResult(axes) for axes in (RAW, refined("a", 0.5), refined("b", 0.5, steps=1))]
    assert varied(cells) == ("steps",)
    assert cell_words(RAW, ("eps",)) == "raw"
    assert cell_words(refined("a", 0.5, steps=1, seed=3), ("eps", "steps", "targets", "seed")) == (
        "a, eps 0.5, 1 step, pseudo, seed 3"
    )
    assert [eps_words(8 / 255, "linf"), eps_words(0.03, "linf"), eps_words(8 / 255, "l2")] == [
        "8/255",
        "0.03",
        "0.0313725",
    ]
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c", "d", "e", "f"])] == [
        "a",
        "a and b",
        "a, b, c and 3 more",
    ]
    assert listed(["a, eps 1", "b", "c, eps 2"]) == "a, eps 1; b; and c, eps 2"
    assert listed(["a (1 [0, 2])", "b (2 [1, 3])"]) == "a (1 [0, 2]) and b (2 [1, 3])"
