"""Settings of the site that `make docs` builds from the Markdown of this folder, which GitHub shows as well."""

import os
import re
from importlib import import_module
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MIRRORED = {  # pages whose text lies where GitHub expects it
    "index": DOCS / "README.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "changelog": ROOT / "CHANGELOG.md",
}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")

project = "bigroc"
copyright = "the bigroc contributors; Apache-2.0"  # noqa: A001  (the name is Sphinx's)
html_theme = "furo"
html_title = "bigroc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "none"
exclude_patterns = ["README.md"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3  # the anchors that GitHub gives headings

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"  # `name` in a docstring is code, as in Markdown


PUBLIC = ("bigroc", "robust_models", "refine", "refine.synthesis", "eval")


def setup(app):
    for module in map(import_module, PUBLIC):
        for name in getattr(module, "__all__", ()):
            setattr(module, name, getattr(module, name))  # autodoc passes over names that come when they are asked for
    app.connect("source-read", from_the_repository)
    app.connect("autodoc-process-docstring", as_typed)
    app.connect("autodoc-process-signature", shortened)


def from_the_repository(app, page, source):
    """Mirrored pages get their text, and links that leave docs/ lead to the file itself."""
    origin = MIRRORED.get(page, DOCS / f"{page}.md")
    folder = (DOCS / page).parent

    def linked(match: re.Match) -> str:
        target = (origin.parent / match[1]).resolve()
        pages = [DOCS / f"{name}.md" for name, text in MIRRORED.items() if text == target]
        place = os.path.relpath(pages[0] if pages else target, folder)
        return f"]({place}" if pages or target.is_relative_to(DOCS) else f"](path:{place}"

    text = source[0] if page not in MIRRORED else origin.read_text()
    contents = source[0].partition("```{toctree}") if page == "index" else ("", "", "")
    source[0] = LINK.sub(linked, text) + "\n" + "".join(contents[1:])


def as_typed(app, what, name, obj, options, lines):
    """Docstrings are plain text: paragraphs, "- " lists, `code`, and blocks whose indents and columns carry meaning."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = [*"\n\n".join(map(_literal_or_prose, paragraphs)).splitlines(), ""]


def _literal_or_prose(paragraph: str) -> str:
    if paragraph.startswith(">>>"):
        return paragraph
    listed = paragraph.lstrip().startswith("- ")
    if not listed and re.search(r"^\s|\S  +\S", paragraph, flags=re.MULTILINE):
        return "::\n\n" + "\n".join(f"    {line}" for line in paragraph.splitlines())
    pieces = re.split(r"(`[^`]*`)", paragraph)  # what is between backticks stays
    return "".join(piece if piece.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", piece) for piece in pieces)


def shortened(app, what, name, obj, options, signature, returned):
    """Types without their modules, functions by their names."""
    short = [re.sub(r"~?\b([a-z_]+\.)+(?=[A-Z])", "", text or "") or None for text in (signature, returned)]
    return tuple(text and re.sub(r"<(?:function )?(\w+)[^>]*>", r"\1", text) for text in short)
