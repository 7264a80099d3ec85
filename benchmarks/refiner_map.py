"""Where the gain of refining ends, for each classifier and generator: a table and a figure of finished studies.

    bigroc study --config refiner_map.yaml --out runs/map
    python -m benchmarks.refiner_map runs/map/results.json [MORE.json ...] [--figure docs/refiner_map.png]

Distances are the study's, by each of its judges, x 1000; intervals are paired with the raw images'. Cells that
a study has not finished are left out.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Cell = dict[str, Any]  # as results.json of a study has it
MEASURES = ("kid", "frechet")


def suffixes(judges: Sequence[str]) -> list[str]:
    """What the fields of a cell end with, for each judge."""
    return ["" if i == 1 else f"_{i}" for i in range(1, len(judges) + 1)]


def distance(cell: Cell, suffix: str) -> float:
    """Of the cell's images to the real ones by one judge, x 1000."""
    return 1000 * next(cell[name + suffix] for name in MEASURES if name + suffix in cell)


def change(cell: Cell, suffix: str) -> tuple[float, float, float]:
    """By refining, and the ends of its interval, x 1000; below 0 is better."""
    less, low, high = (1000 * cell[f"less_raw{suffix}{end}"] for end in ("", "_low", "_high"))
    return less, low, high


def entry(cell: Cell, judges: Sequence[str]) -> str:
    """The change by each judge; bold where all see one direction significantly, in brackets where one sees none."""
    changes = [change(cell, suffix) for suffix in suffixes(judges)]
    words = ", ".join(f"{less:+.3g}" for less, _, _ in changes)
    if all(high < 0 for _, _, high in changes) or all(low > 0 for _, low, _ in changes):
        return f"**{words}**"
    return words if all(low * high > 0 for _, low, high in changes) else f"({words})"


def table(cells: Sequence[Cell], judges: Sequence[str]) -> str:
    """A row for each image set and eps, a column for each classifier."""
    raw = {cell["images"]: cell for cell in cells if cell["classifier"] is None}
    refined = {(cell["images"], cell["eps"], cell["classifier"]): cell for cell in cells if cell["classifier"]}
    names = list(dict.fromkeys(classifier for _, _, classifier in refined))
    lines = [f"| images (raw) | eps | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for images, eps in dict.fromkeys((images, eps) for images, eps, _ in refined):
        start = ", ".join(f"{distance(raw[images], suffix):.3g}" for suffix in suffixes(judges))
        found = [refined.get((images, eps, name)) for name in names]
        entries = ["-" if cell is None else entry(cell, judges) for cell in found]
        lines.append(f"| {images} ({start}) | {eps:g} | {' | '.join(entries)} |")
    return "\n".join(lines)


def draw(cells: Sequence[Cell], judges: Sequence[str], path: Path) -> None:
    """A panel for each judge and image set: distance over eps, a line for each classifier, the raw images' dashed."""
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(cell["images"] for cell in cells))
    names = list(dict.fromkeys(cell["classifier"] for cell in cells if cell["classifier"]))
    figure = Figure(figsize=(2.5 * len(sets), 2.6 * len(judges)), layout="constrained")
    panels = figure.subplots(len(judges), len(sets), squeeze=False)
    for row, (judge, suffix) in enumerate(zip(judges, suffixes(judges), strict=True)):
        for column, images in enumerate(sets):
            panel, own = panels[row][column], [cell for cell in cells if cell["images"] == images]
            raw = next(distance(cell, suffix) for cell in own if cell["classifier"] is None)
            panel.axhline(raw, color="0.4", linestyle="--", linewidth=1)
            for name in names:
                line = sorted((cell for cell in own if cell["classifier"] == name), key=lambda cell: cell["eps"])
                changes = [change(cell, suffix) for cell in line]
                ends = [[less - low for less, low, _ in changes], [high - less for less, _, high in changes]]
                at = [raw + less for less, _, _ in changes]
                panel.errorbar(
                    [cell["eps"] for cell in line], at, yerr=ends, label=name, marker="o", markersize=3, linewidth=1
                )
            panel.set_xlabel("eps (L2, pixels in [0,1])")
            if row == 0:
                panel.set_title(images)
            if column == 0:
                panel.set_ylabel(f"1,000 x distance in\n{judge}")
    panels[0][0].legend(fontsize="x-small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results.json of studies with the same judges")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    found = [json.loads(path.read_text("utf-8")) for path in args.results]
    judges = [found[0]["judge"], *found[0]["other_judges"]]
    if any([one["judge"], *one["other_judges"]] != judges for one in found):
        parser.error("results: the studies have other judges")
    cells = [cell for one in found for cell in one["cells"] if cell["classifier"] is None or "less_raw" in cell]
    print(table(cells, judges))
    if args.figure:
        draw(cells, judges, args.figure)


if __name__ == "__main__":
    main()
