"""What the documentation says: its links, its headings, and the commands in it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "robust_models" / "pretrained").glob("*.md"),
    ]
)
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
_FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!`)\[[^\]`]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`((?:bigroc|python -m|torchrun|make) [^`]+)`")


@dataclass(frozen=True)
class Documented:
    """A command line of a page."""

    page: str  # its path in the repository
    text: str

    @property
    def words(self) -> list[str]:
        """Without variables in front, comments, a file for the output, and torchrun, which starts a module."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words and words[0] == "torchrun":
            start = words.index("--no-python") + 1 if "--no-python" in words else words.index("-m")
            words = words[start:] if "--no-python" in words else ["python", *words[start:]]
        return words[: words.index(">")] if ">" in words else words


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of this language ("" where none is named)."""
    return [text for info, text in _FENCE.findall(page.read_text()) if info.strip() == language]


def commands(page: Path) -> list[Documented]:
    """Every command line in the page's blocks, or in a recipe's first comment, in order."""
    text = _commented(page) if page.suffix == ".yaml" else "".join(blocks(page, "") + blocks(page, "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [Documented(name_of(page), part) for part in parts if part]


def _commented(recipe: Path) -> str:
    return "\n".join(re.findall(r"^#   ((?:bigroc|python -m|torchrun) .*)$", recipe.read_text(), flags=re.MULTILINE))


def examples_of(shown: str, page: str) -> list[Documented]:
    """The examples at the end of a --help; what stands in brackets behind one is a remark."""
    lines = shown.partition("examples:\n")[2].replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s{2,}\(.*\)$", "", line).strip() for line in lines if line.startswith("  ")]
    return [Documented(page, line) for line in lines if re.match(r"(bigroc|torchrun|python) [^|]*$", line)]


def mentions(page: Path) -> list[Documented]:
    """Commands in the page's sentences, which may be incomplete."""
    return [Documented(name_of(page), " ".join(text.split())) for text in _INLINE.findall(_prose(page))]


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures, of this repository."""
    for target in _LINK.findall(_prose(page)):
        if not target.startswith(("http:", "https:")):
            yield target


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())
