"""The summaries of `survey` and `survey report` in words."""

from typing import Any

from eval.survey.preference import ENOUGH_RATERS
from robust_models.runtime.command import Summary


def format_survey(summary: Summary) -> str:
    """How many answers there are, and the command that reports on them."""
    answers, raters = _count(summary["answers"], "answer"), _count(summary["raters"], "rater")
    return f"{answers} of {raters} in {summary['out']}; bigroc survey report {summary['out']}"


def format_survey_report(summary: Summary) -> str:
    """What raters prefer, how sure that is, and each class and rater by itself."""
    parts = [
        [f'"{summary["question"]}"', f"{summary['after']} (refined) against {summary['before']}"],
        _overall(summary),
        _by_class(summary["classes"]),
        _by_rater(summary["raters"], summary["excluded"]),
        _excluded(summary),
    ]
    return "\n".join(line for part in parts for line in part)


def _overall(summary: Summary) -> list[str]:
    found, left, alpha = summary["preference"], summary["left"], summary["alpha"]
    counts = f"N = {_count(found['answers'], 'answer')} of {_count(summary['n_raters'], 'rater')} on "
    counts += _count(summary["n_pairs"], "pair")
    if not found["n"]:
        return [f"no preference: not one decided answer is left ({counts})"]
    return [
        f"preference for the refined image: {_share(found)}, p = {found['p']:.2g}",
        *_clustered(summary),
        f"no difference: {_percent(found['ties'] / found['answers'])} of the answers",
        f"agreement between raters: {_alpha(alpha)}",
        f"the left image was chosen in {_share(left)}, p = {left['p']:.2g}",
        counts,
        "intervals are 95 %, Wilson; p is the two-sided binomial; both take answers as independent",
    ]


def _clustered(summary: Summary) -> list[str]:
    over = summary["clustered_over"]
    reach = "" if over != "pairs" else f"; with fewer than {ENOUGH_RATERS} raters it holds for these raters only"
    interval = _interval(summary["clustered_interval"])
    return [f"  as answers are not independent: {interval}, {summary['resamples']} resamples of {over}{reach}"]


def _alpha(alpha: dict[str, Any]) -> str:
    if alpha["alpha"] is None:
        return "not defined; it needs pairs that two raters judged, and more than one kind of answer"
    return f"Krippendorff's alpha {alpha['alpha']:.3f} (nominal, {_count(alpha['pairs'], 'pair')} of several raters)"


def _by_class(classes: dict[str, dict[str, Any]]) -> list[str]:
    return ["by class:"] * bool(classes) + [
        f"  {name}: {_share(found)}{_ties(found)}" for name, found in classes.items()
    ]


def _by_rater(raters: dict[str, dict[str, Any]], excluded: list[str]) -> list[str]:
    lines = ["by rater:"]
    for name, found in raters.items():
        checks = f"{found['checks_passed']} of {found['checks']} checks passed"
        note = "; left out" if name in excluded else ""
        lines.append(f"  {name}: {_share(found)}{_ties(found)}; {checks}; median {found['median_s']:.1f} s{note}")
    return lines


def _excluded(summary: Summary) -> list[str]:
    if not summary["excluded"]:
        return []
    names = ", ".join(summary["excluded"])
    least = _percent(summary["min_checks"])
    return [f"left out of all but their own lines, for passing less than {least} of their checks: {names}"]


def _share(found: dict[str, Any]) -> str:
    if found["share"] is None:
        return "none decided"
    return f"{_percent(found['share'])} of {found['n']} decided ({_interval(found['interval'])})"


def _ties(found: dict[str, Any]) -> str:
    return f", {found['ties']} no difference" if found["ties"] else ""


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
