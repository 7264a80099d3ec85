"""Matplotlib figures as inline SVG whose colours follow the page, light or dark, and as files for a paper."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 3.2  # inches of a panel; two stand side by side on a laptop, one on a phone
FONT_SIZE = 10.5
_MARGINS = {"left": 0.165, "right": 0.915, "bottom": 0.165, "top": 0.975}

# Stand-ins that no drawing needs for itself; the page says what they are in its theme.
INK, FAINT, GRID = "#010203", "#010204", "#010205"
NUM_COLOURS = 7
_SERIES = tuple(f"#0102{16 + i:02x}" for i in range(NUM_COLOURS))
_PAPER = {  # what the stand-ins are in a file: the page's light theme (report.css)
    INK: "#1c1f23",
    FAINT: "#61676f",
    GRID: "#dfe2e6",
    **dict(
        zip(_SERIES, ("#0072b2", "#c8500a", "#00805c", "#a8508a", "#9a6a00", "#2f9bd6", "#55585e"), strict=True),
    ),
}
_VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--line"} | {c: f"--series-{i}" for i, c in enumerate(_SERIES)}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
}  # text stays text; names may hold a dollar sign
_COLOURS: dict[Any, Any] = {"text.color": INK, "axes.labelcolor": INK, "font.size": FONT_SIZE}
_UNSAID = {  # metadata that would differ from run to run
    "svg": ("Creator", "Date", "Format", "Type"),
    "pdf": ("Creator", "Producer", "CreationDate"),
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Style:
    """How a series looks; distinguished by more than colour."""

    colour: str
    marker: str
    line: Any  # as matplotlib takes it


def style(colour: int, variant: int = 0) -> Style:
    """The look of colour 0, 1, ...; variants of a colour differ in marker and line."""
    number = colour + variant
    return Style(_SERIES[colour % NUM_COLOURS], _MARKERS[number % len(_MARKERS)], _LINES[number % len(_LINES)])


@dataclass(frozen=True)
class Drawing:
    """One plot: as part of the page and, where it is asked for, as files."""

    page: Markup
    figure: "Figure"
    name: str
    legend: Sequence[tuple[Style, str]]

    def files(self) -> dict[str, bytes]:
        """{"svg": ..., "pdf": ...} for a paper, with a legend; the same bytes for the same plot."""
        from matplotlib import rc_context

        _add_legend(self.figure, self.legend)
        _recolour(self.figure)
        found = {}
        for kind, unsaid in _UNSAID.items():
            file = io.BytesIO()
            settings: dict[Any, Any] = {"svg.hashsalt": self.name, "pdf.fonttype": 42}  # TrueType, as journals ask for
            with rc_context(_SETTINGS | settings):
                self.figure.savefig(file, format=kind, bbox_inches="tight", metadata=dict.fromkeys(unsaid))
            found[kind] = file.getvalue()
        return found


@contextmanager
def panel() -> Iterator[tuple["Figure", "Axes"]]:
    """A figure with one plot, without frame and in the stand-in colours. Write it inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS | _COLOURS):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        figure.subplots_adjust(**_MARGINS)  # the same for all, so that panels below each other line up
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(color=FAINT, labelcolor=INK)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.locator_params(nbins=6)
        yield figure, axes


def drawn(
    figure: "Figure",
    name: str,
    words: str,
    titles: Mapping[str, str] = MappingProxyType({}),
    legend: Sequence[tuple[Style, str]] = (),
) -> Drawing:
    """The figure for a page (see svg) and, with its legend, for a paper."""
    return Drawing(svg(figure, name, words, titles), figure, name, legend)


def _add_legend(figure: "Figure", legend: Sequence[tuple[Style, str]]) -> None:
    """Below the plot, as the page has it beside the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, label=words)
        for look, words in legend
    ]
    if handles:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
        figure.axes[0].legend(handles=handles, frameon=False, fontsize=0.8 * FONT_SIZE, **below)


def _recolour(figure: "Figure") -> None:
    """The light theme's colours for the stand-ins, and no links: a file leads nowhere."""
    for artist in figure.findobj():
        artist.set_url(None)
        for kind in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            getter, setter = getattr(artist, f"get_{kind}", None), getattr(artist, f"set_{kind}", None)
            if getter is not None and setter is not None and (colour := _on_paper(getter())):
                setter(colour)


def _on_paper(found: Any) -> str | None:
    """The colour for which what an artist has stands in; None where it is no stand-in."""
    from matplotlib.colors import same_color, to_rgb, to_rgba_array

    try:
        rows = to_rgba_array(found)
    except (ValueError, TypeError):  # none, or no colour at all
        return None
    for stand_in, colour in _PAPER.items():
        if len(rows) and all(same_color(tuple(row[:3]), to_rgb(stand_in)) for row in rows):
            return colour
    return None


def svg(figure: "Figure", name: str, words: str, titles: Mapping[str, str] = MappingProxyType({})) -> Markup:
    """The figure for a page: ids begin with `name`, `words` say what it shows, titles[url] what a link leads to.

    A figure without words is hidden from those who do not see it.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    salt: dict[Any, Any] = {"svg.hashsalt": name}  # ids would else be drawn by chance
    with rc_context(_SETTINGS | salt):
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(_UNSAID["svg"]))
    drawing = file.getvalue()
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    for pattern, replacement in _FOR_PAGE:
        drawing = re.sub(pattern, replacement.replace("NAME", name), drawing, flags=re.DOTALL)
    drawing = re.sub(r'<a xlink:href="([^"]*)" target="_blank">', lambda link: _link(link[1], titles), drawing)
    attributes = f'role="group" aria-label="{escape(words)}"' if words else 'aria-hidden="true"'
    return Markup(drawing.replace("<svg", f"<svg {attributes}", 1))  # matplotlib escapes the text it is given


@cache
def swatch(look: Style) -> Markup:
    """A short piece of a series' line with its marker, for a legend. It has no ids: a page may show it many times."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.markers import MarkerStyle
    from matplotlib.patches import PathPatch
    from matplotlib.transforms import Affine2D, IdentityTransform

    figure = Figure(figsize=(0.42, 0.18), dpi=72)
    figure.patch.set_visible(False)
    figure.add_artist(Line2D([0.02, 0.98], [0.5, 0.5], color=look.colour, linestyle=look.line, linewidth=1.6))
    marker = MarkerStyle(look.marker)
    placed = marker.get_transform() + Affine2D().scale(7).translate(*(figure.get_size_inches() * 36))
    outline = marker.get_path().transformed(placed)
    figure.add_artist(PathPatch(outline, facecolor=look.colour, linewidth=0, transform=IdentityTransform()))
    return svg(figure, "swatch", "")


_FOR_PAGE = (  # what to find, what to write for it
    (r"^.*?<svg", "<svg"),  # XML's own header
    (r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1"),  # as large as its place; viewBox has the shape
    (r"\s*<defs>\s*<style.*?</style>\s*</defs>", ""),  # would hold for the whole page
    (r" font-family: [^;]*;", ""),
    (r'<g id="[^"]*">', "<g>"),
    (r'\bid="', 'id="NAME-'),
    (r'(url\(|<use xlink:href=")#', r"\1#NAME-"),
)


def _link(url: str, titles: Mapping[str, str]) -> str:
    return f'<a href="{url}">' + (f"<title>{escape(titles[url])}</title>" if url in titles else "")
