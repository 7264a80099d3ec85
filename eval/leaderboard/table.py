"""The leaderboard and the cards, in Markdown, from what was measured."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

MISSING = "-"
DISTANCES = ("kid", "frechet")  # of a study's cells


@dataclass
class Measured:
    """A classifier and its parts (config.PartName): each has the command, and what it found."""

    name: str
    sha256: str
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def found(self, part: str) -> dict[str, Any]:
        """What the part's command found; {} where it was not run."""
        return self.parts.get(part, {}).get("found", {})

    @property
    def rank(self) -> float:
        """By AutoAttack, else by APGD, else by the worst of all balls."""
        for part in ("autoattack", "apgd"):
            if results := self.found(part).get("results"):
                return results[0]["robust_accuracy"]
        return self.found("balls").get("worst_case", {}).get("robust_accuracy", -1.0)


def leaderboard(measured: Iterable[Measured]) -> str:
    """Tables with a row for each classifier, the most robust first; intervals of 95 % behind their figures."""
    ranked = sorted(measured, key=lambda one: -one.rank)
    return "\n".join(filter(None, (_table(title, figures, ranked) for title, figures in TABLES)))


def _table(title: str, figures: "Figures", ranked: Sequence[Measured]) -> str:
    """Empty where nothing of it was measured."""
    rows = [figures(one) for one in ranked]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return ""
    lines = [f"## {title}", "", f"| classifier | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for one, row in zip(ranked, rows, strict=True):
        lines.append(f"| `{one.name}` | {' | '.join(row.get(name, MISSING) for name in columns)} |")
    return "\n".join(lines) + "\n"


def card(one: Measured) -> str:
    """All figures of one classifier, each with the command that repeats it."""
    found = [item for _, figures in TABLES for item in figures(one).items()]
    rows = "\n".join(f"| {name} | {value} |" for name, value in found)
    seen = one.found("balls") or one.found("apgd") or one.found("autoattack")
    count = f", N = {seen['n']} images of {seen['data']}" if seen else ""
    commands = "\n".join(part["command"] for part in one.parts.values())
    return (
        f"# {one.name}\n\nsha256 `{one.sha256}`{count}; intervals are 95 %.\n\n| measured | |\n|---|---|\n{rows}\n\n"
        f"```\n{commands}\n```\n"
    )


def _robust(one: Measured) -> dict[str, str]:
    balls, row = one.found("balls"), {}
    clean = balls or one.found("apgd") or one.found("autoattack")
    if clean:
        row["clean, %"] = _percent(clean["clean_accuracy"], clean["clean_interval"])
    for part, title in (("autoattack", "AutoAttack"), ("apgd", "APGD")):
        for result in one.found(part).get("results", ()):
            row[f"{title}, {_ball(result)}"] = _percent(result["robust_accuracy"], result["interval"])
    for result in balls.get("results", ()):
        row[f"PGD-20, {_ball(result)}"] = _percent(result["robust_accuracy"], result["interval"])
    if worst := balls.get("worst_case"):
        row["all balls"] = _percent(worst["robust_accuracy"], worst["interval"])
    return row


def _outputs_and_gradients(one: Measured) -> dict[str, str]:
    balls, row = one.found("balls"), {}
    if corrupted := balls.get("corruptions"):
        row["corruptions, %"] = _percent(corrupted["mean"], corrupted["interval"])
    if calibration := balls.get("calibration"):
        row["calibration error, %"] = f"{100 * calibration['ece']:.1f} -> {100 * calibration['ece_scaled']:.1f}"
    if ood := balls.get("ood"):
        for score, area in ood["auroc"].items():
            low, high = ood["interval"][score]
            row[f"AUROC, {score.replace('_', '-')}"] = f"{area:.3f} ({low:.3f} to {high:.3f})"
    if found := one.found("gradients"):
        row["gradients along the data, times by chance"] = f"{found['lift']:.1f}"
    return row


def _gains(one: Measured) -> dict[str, str]:
    """Of each set and judge the change at the eps where the first judge sees the largest gain, in % of the raw
    distance.
    """
    found, row = one.found("gains"), {}
    cells = found.get("cells", ())
    raw = {cell["images"]: cell for cell in cells if cell.get("classifier") is None}
    own = [cell for cell in cells if cell.get("classifier") == one.name and "less_raw" in cell]
    for images in dict.fromkeys(cell["images"] for cell in own):
        best = min((cell for cell in own if cell["images"] == images), key=lambda cell: cell["less_raw"])
        for number, judge in enumerate(found["judges"], start=1):
            suffix = "" if number == 1 else f"_{number}"
            whole = next((raw[images][name + suffix] for name in DISTANCES if name + suffix in raw[images]), 0.0)
            if f"less_raw{suffix}" not in best:
                continue
            title = f"{images}: distance in {judge}, % (eps)"
            if whole <= 0:  # unbiased kernel distances of sets that are alike lie about 0
                row[title] = MISSING
                continue
            change, low, high = (100 * best[f"less_raw{suffix}{end}"] / whole for end in ("", "_low", "_high"))
            row[title] = f"{change:+.0f} ({low:+.0f} to {high:+.0f}; {best['eps']:g})"
    return row


Figures = Callable[[Measured], dict[str, str]]
TABLES: tuple[tuple[str, Figures], ...] = (
    ("Clean and attacked", _robust),
    ("Outputs and gradients", _outputs_and_gradients),
    ("As refiners", _gains),
)


def _ball(result: dict[str, Any]) -> str:
    levels = 255 * result["eps"]
    is_levels = result["norm"] == "linf" and abs(levels - round(levels)) < 1e-6
    return f"{result['norm']} {f'{levels:.0f}/255' if is_levels else format(result['eps'], 'g')}"


def _percent(share: float, interval: list[float]) -> str:
    return f"{100 * share:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
