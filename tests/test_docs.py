"""README and docs: links lead somewhere, the parsers take the commands, and the files that these name are there."""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bigroc.cli import main as bigroc
from robust_models.checkpoints import embedded_names
from robust_models.checkpoints.published import published
from robust_models.features.extractor import is_feature_space, split_spaces
from robust_models.runtime.config import RECIPES
from robust_models.runtime.files import located
from tests.documented import PAGES, ROOT, Documented, anchors, blocks, commands, examples_of, links, mentions, name_of
from tests.documented import RECIPES as RECIPE_FILES

PRETRAINED = "robust_models/pretrained"
PLACEHOLDERS = {  # words in capitals stand for a reader's own files; here, for something of their kind
    "IMAGES": f"{PRETRAINED}/vae-cifar10.npz",
    "OTHER": f"{PRETRAINED}/dcgan-cifar10.npz",
    "REAL": f"{PRETRAINED}/cifar10-test-500.npz",
    "SMALL": f"{PRETRAINED}/vae-cifar10.npz",
    "TEST.npz": f"{PRETRAINED}/cifar10-test-500.npz",
    "TRAIN.npz": f"{PRETRAINED}/cifar10-test-500.npz",
    "CHECKPOINT.pt": f"{PRETRAINED}/cifar10-l2-small.safetensors",
    "DRAWING.png": "docs/gallery/sketch.png",
    "MASK.png": "docs/gallery/sketch.png",
    "FOLDER": "docs",
    "DIR": "data",
}
READS = {
    *("--after", "--before", "--ckpt", "--config", "--data", "--data.path", "--images", "--init", "--input", "--judge"),
    *("--mask", "--prior", "--reference", "--seeds", "--start-from", "--weights", "file", "answers"),
}
DATASETS = ("cifar10", "cifar100", "imagenet", "restricted_imagenet", "cinic10")
PROGRAMS = {"mkdir", "bigroc", "python", "python3", "make", "pip", "git", "cd", ".", "apt-get", "bash"}
PROGRAMS |= {".venv/bin/pre-commit"}
SOURCES = [*PAGES, *RECIPE_FILES]
OURS = [command for page in SOURCES for command in commands(page) if command.words and command.words[0] == "bigroc"]
ALL_COMMANDS = [command for page in SOURCES for command in commands(page) if command.words]
_id = lambda command: f"{command.page}: {command.text[:60]}"  # noqa: E731


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that looks like a clone to commands, and takes what they write."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "robust_models").mkdir()
    for name in (PRETRAINED, "configs", "docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_words(command: Documented) -> list[str]:
    """The words of one of our commands as `bigroc` takes them, with something for each placeholder."""
    words = command.words
    if words[:2] == ["python", "-m"]:
        room = {"robust_models": ["models"], "bigroc": []}.get(words[2], [words[2]])
        words = ["bigroc", *room, *words[3:]]
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, PLACEHOLDERS))})(?![\w.])")
    return [pattern.sub(lambda found: PLACEHOLDERS[found[0]], word) for word in words[1:]]


def of_ours(command: Documented) -> bool:
    words = command.words
    rooms = ("train", "refine", "eval", "robust_models", "bigroc")
    return bool(words) and (words[0] == "bigroc" or (words[:2] == ["python", "-m"] and words[2] in rooms))


def tried(words: list[str]) -> list[str]:
    """The words, as a dry run where the command does more than print."""
    prints_only = words[0] in ("recipes", "completion") or words[:2] == ["models", "list"] or words[-1] == "--help"
    return words if prints_only else [*words, "--dry-run"]


def said(words: list[str]) -> str:
    """What `bigroc WORDS` prints; it has to end well."""
    printed, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint):
        try:
            status = bigroc(words)
        except SystemExit as end:
            status = end.code
    assert not status, f"{words}: {complaint.getvalue()}"
    return printed.getvalue()


def test_there_is_something_to_check():
    assert len(PAGES) > 15
    assert len(OURS) > 30


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.is_file(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=_id)
def test_commands_are_of_known_programs(command):
    assert command.words[0] in PROGRAMS


@pytest.mark.parametrize("command", [command for command in ALL_COMMANDS if of_ours(command)], ids=_id)
def test_the_parser_takes_the_command(command, clone):
    words = own_words(command)
    if "augmentation.yaml" in words:  # as above, and it opens what it trains on
        words += ["--data", "bundled:cifar10-test-500", "--test", "null", "--held-out", "200", "--amounts", "250"]
    elif "study" in words[:2]:  # whose dry run opens what it judges by: no Inception, no CIFAR-10 is downloaded here
        words += ["--judge", "classifier:cifar10-standard-small", "--data", "null", "--robust.eps", "{}"]
    said(tried(words))


@pytest.mark.parametrize("words", [["refine"], ["train"], ["eval"], ["models"], ["study"], ["survey"]], ids=" ".join)
def test_the_parser_takes_the_examples_of_help(words, clone):
    """All but those of studies, which open the files that they name."""
    examples = examples_of(said([*words, "--help"]), "--help")
    assert examples
    for example in examples:
        if of_ours(example) and "study" not in example.words and "--help" not in example.words:
            said(tried(own_words(example)))


@pytest.mark.parametrize(
    "command", [command for page in PAGES for command in mentions(page) if of_ours(command)], ids=_id
)
def test_a_mentioned_command_has_its_flags(command, clone):
    words = [word for word in own_words(command) if word not in ("...", "--help")]
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    task = ["--task", words[words.index("--task") + 1]] if "--task" in words and words[-1] != "--task" else []
    verbs = [word for word in words[:first] if re.fullmatch(r"[a-z]+", word)]
    shown = said([*verbs, *(task if task[1:] != ["..."] else []), "--help"])
    for word in words[first:]:
        if word.startswith("--") and word not in ("--task", "--version"):
            assert re.search(rf"{re.escape(word.partition('=')[0].replace('_', '-'))}\b", shown), word


@pytest.mark.parametrize("page", SOURCES, ids=name_of)
def test_files_that_commands_read_are_there(page, clone):
    """In the repository, by a name that loads, or made by an earlier command of the page."""
    made: set[str] = set()
    for command in commands(page):
        if command.words[:3] == ["python", "-m", "benchmarks.gallery"] and "--inputs" in command.words:
            made |= {path.name for path in _gallery_inputs(clone)}
        if "--out" in command.words:
            made |= {command.words[command.words.index("--out") + 1].rstrip("/")}
        if of_ours(command):
            words = own_words(command)
            for flag, value in _read(words):
                assert _is_there(flag, value, made), f"{command.text}: no {value}"
            made |= _made(words)


def _gallery_inputs(folder: Path) -> list[Path]:
    from benchmarks.gallery import DATA, make_inputs

    (folder / "inputs").mkdir()
    make_inputs(folder / "inputs", DATA)
    return list((folder / "inputs").iterdir())


def _read(words: list[str]) -> list[tuple[str, str]]:
    """(flag, value) of everything that the command reads."""
    pairs = pairwise(words)
    found = [(flag, value) for flag, value in pairs if flag in READS and not value.isdigit()]  # --images 6: a number
    positional = {"inspect": "file", "convert": "file", "report": "answers"}
    found += [(positional[word], words[i + 1]) for i, word in enumerate(words[:2]) if word in positional]
    if words[0] == "study" or words[:2] == ["eval", "study"]:
        sets = [(flag, value) for flag, value in found if flag == "--images"]
        found = [pair for pair in found if pair not in sets]
        found += [("--images", entry["path"]) for _, value in sets for entry in yaml.safe_load(value)]
    return [(flag, one) for flag, value in found for one in (value.split(",") if flag == "--ckpt" else [value])]


def _is_there(flag: str, value: str, made: set[str]) -> bool:
    if flag == "--config":
        return (RECIPES / f"{value.removesuffix('.yaml')}.yaml").is_file()
    if flag == "--start-from" and value in ("noise", "pca", "mean", "nearest", "bicubic"):
        return True
    if flag.startswith("--data") and value.partition(":")[0] in DATASETS:
        return True
    if flag == "--judge":
        return all(is_feature_space(name) or name in embedded_names() for name in split_spaces(value))
    if flag == "--ckpt" and (found := re.fullmatch(r"open_clip:([\w-]+):(\S+)", value)):
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(found[1])
        return found[1] in open_clip.list_models() and (found[2] in tags or Path(found[2]).exists())
    named = flag in ("--ckpt", "--init", "file") and value in {*embedded_names(), *published()}
    return named or located(value).exists() or value.rstrip("/") in made or value.split("/")[0] in PLACEHOLDERS.values()


def _made(words: list[str]) -> set[str]:
    out = {value.rstrip("/") for flag, value in pairwise(words) if flag in ("--out", "--keep-raw")}
    if words[:1] == ["models"] and words[1] == "convert":
        out.add(words[3])
    return out | {f"{folder}/classifier.safetensors" for folder in out if words[0] == "train"}


@pytest.mark.parametrize(
    "command", [command for page in PAGES for command in [*commands(page), *mentions(page)]], ids=_id
)
def test_benchmarks_examples_and_make_targets_are_there(command):
    words = command.words
    if words[:1] == ["make"]:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks.", "train.loaders.")):
        shown = _help_of(words[2], [word for word in words[3:4] if word.isalpha() and word.islower()])
        for word in words[3:]:
            assert not word.startswith("--") or re.search(rf"{re.escape(word)}\b", shown), f"no flag {word}"
    elif words[:1] == ["python"] and words[1].startswith("examples/"):
        assert (ROOT / words[1]).is_file()


def _help_of(module: str, verb: list[str]) -> str:
    """What `python -m MODULE VERB --help` prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [module, *verb, "--help"])
        patch.delitem(sys.modules, module, raising=False)
        with pytest.raises(SystemExit, match="0"):
            runpy.run_module(module, run_name="__main__")
    return printed.getvalue()


def test_the_readme_can_be_followed(clone):
    """Its commands one after the other, in a fresh clone; the figures that it quotes come out."""
    text = (ROOT / "README.md").read_text()
    followed = [command for command in commands(ROOT / "README.md") if of_ours(command)]
    assert [command.words[1] for command in followed] == ["refine", "refine", "eval", "eval"]
    summaries = [json.loads(said([*own_words(command), "--json"])) for command in followed]
    for name in ("refined.npz", "before_after.png", "made.npz", "made.png"):
        assert (clone / name).stat().st_size > 1000
    quoted = re.search(r"Frechet distance of ([\d.]+)", text)
    assert quoted
    assert summaries[2]["frechet"] == pytest.approx(float(quoted[1]), abs=0.06)
    clean, robust = re.findall(r"accuracy\s+of\s+(\d+) %", text)
    assert 100 * summaries[3]["clean_accuracy"] == pytest.approx(float(clean), abs=1)
    assert 100 * summaries[3]["results"][0]["robust_accuracy"] == pytest.approx(float(robust), abs=2)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "python.md"], ids=name_of)
def test_the_python_examples_run(page, clone):
    """Each page's blocks in order, in one namespace; README's begins with images x and classes y."""
    import torch

    from robust_models import open_images, to_float

    samples = open_images(f"{PRETRAINED}/vae-cifar10.npz")
    assert samples.labels is not None
    namespace = {"x": to_float(samples.read(0, 8)), "y": torch.as_tensor(samples.labels[:8])}
    examples = blocks(page, "python")
    assert examples
    for example in examples:
        exec(compile(example, name_of(page), "exec"), namespace)


def test_the_recipes_page_is_what_the_recipes_say():
    """Made by `python docs/recipes_page.py > docs/recipes.md`."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(ROOT / "docs" / "recipes_page.py"), run_name="__main__")
    assert (ROOT / "docs" / "recipes.md").read_text() == printed.getvalue()


def test_the_citations_agree():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    page = (ROOT / "docs" / "cite.md").read_text()
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(found)
    for paper in found["references"]:
        assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in page
        for author in paper["authors"]:
            assert f"{author['family-names']}, {author['given-names']}" in page
    pyproject = (ROOT / "pyproject.toml").read_text()
    for text in (page, pyproject):
        assert found["version"] in text


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    words = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    built = subprocess.run([*words, ROOT / "docs", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in ("index.html", "refine.html", "gallery/README.html", "contributing.html", "architecture.html"):
        assert (tmp_path / page).is_file()
    reference = (tmp_path / "api.html").read_text()
    assert "robust_models.PGD" in reference
    assert "\\_" not in reference  # nothing that was escaped for the site is seen on it
