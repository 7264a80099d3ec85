"""From a file of answers to what raters prefer."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from eval.survey.answers import Answer, read_answers
from eval.survey.config import SurveyReportConfig
from eval.survey.preference import Clusters, Interval, clustered_interval, krippendorff_alpha, share_of
from robust_models.errors import UserError
from robust_models.runtime.command import Summary


def run_survey_report(config: SurveyReportConfig) -> Summary:
    """Of raters who pass enough attention checks: preference for the refined image, agreement, bias of sides."""
    contents = read_answers(config.answers)
    if not contents.answers:
        raise UserError(f"answers: {config.answers} has no answers yet")
    raters = {rater: _rater(answers) for rater, answers in _by("rater", contents.answers).items()}
    excluded = [rater for rater, found in raters.items() if _fails(found, config.min_checks)]
    kept = [answer for answer in contents.answers if answer.kind == "pair" and answer.rater not in excluded]
    decided = [answer for answer in kept if not answer.is_tie]
    clustered = _clustered(decided, config)
    by_class: dict[str, list[Answer]] = defaultdict(list)
    for answer in kept:
        name = contents.classes[answer.number]
        if name is not None:
            by_class[name].append(answer)
    units = [[_preferred(answer) for answer in answers] for answers in _by("number", kept).values()]
    compared = sum(len(unit) > 1 for unit in units)
    meta = contents.meta
    return {
        "answers": str(config.answers),
        "question": meta["settings"]["question"],
        **{key: meta[key] for key in ("before", "after", "images", "size", "sha256", "settings", "begun")},
        "n_raters": len(raters) - len(excluded),
        "n_pairs": len(units),
        "preference": _preference(kept),
        "clustered_interval": None if clustered is None else clustered[0],
        "clustered_over": None if clustered is None else clustered[1],
        "resamples": config.resamples,
        "seed": config.seed,
        "alpha": {"alpha": krippendorff_alpha(units), "pairs": compared},
        "left": asdict(share_of(sum(answer.choice == "left" for answer in decided), len(decided))),
        "classes": {name: _preference(by_class[name]) for name in sorted(by_class)},
        "raters": raters,
        "min_checks": config.min_checks,
        "excluded": excluded,
    }


def _rater(answers: Sequence[Answer]) -> dict[str, Any]:
    pairs = [answer for answer in answers if answer.kind == "pair"]
    checks = [answer for answer in answers if answer.kind == "check"]
    return {
        **_preference(pairs),
        "checks": len(checks),
        "checks_passed": sum(answer.hits for answer in checks),
        "median_s": median(answer.milliseconds for answer in answers) / 1000,
    }


def _fails(rater: dict[str, Any], min_checks: float) -> bool:
    """Who has seen no check has failed none."""
    return rater["checks_passed"] < min_checks * rater["checks"]


def _preference(answers: Sequence[Answer]) -> dict[str, Any]:
    """Share of the refined image among the decided answers, ties apart."""
    ties = sum(answer.is_tie for answer in answers)
    share = share_of(sum(answer.hits for answer in answers), len(answers) - ties)
    return {**asdict(share), "ties": ties, "answers": len(answers)}


def _preferred(answer: Answer) -> str:
    return "tie" if answer.is_tie else "refined" if answer.hits else "original"


def _clustered(decided: Sequence[Answer], config: SurveyReportConfig) -> tuple[Interval, Clusters] | None:
    raters, pairs = (sorted({getattr(answer, name) for answer in decided}) for name in ("rater", "number"))
    row, column = ({key: i for i, key in enumerate(keys)} for keys in (raters, pairs))
    hits, counts = np.zeros((2, len(raters), len(pairs)))
    for answer in decided:
        place = row[answer.rater], column[answer.number]
        hits[place] += answer.hits
        counts[place] += 1
    return clustered_interval(hits, counts, resamples=config.resamples, seed=config.seed)


def _by(name: str, answers: Sequence[Answer]) -> dict[Any, list[Answer]]:
    groups: dict[Any, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[getattr(answer, name)].append(answer)
    return dict(groups)
