"""The answer in sentences, computed from the numbers and no stronger than their intervals."""

from collections.abc import Sequence

from eval.study.report.cautions import STANDARD
from eval.study.report.compare import Difference, Estimate
from eval.study.report.digest import BEST, Digest, Row, SetDigest
from eval.study.report.words import counted, judge_words, listed, number_words, places

WAYS = {"lower": "significantly lower than raw", "same": "no significant difference", "higher": "significantly higher"}


def summary(digest: Digest) -> dict[str, str]:
    """A few sentences for each image set, by its name."""
    return {one.name: " ".join(_sentences(digest, one)) for one in digest.sets}


def answer(digest: Digest) -> str:
    """Whether the second of two classifiers refines better than the first; "" for a study of anything else.

    Each at its best setting by the first judge, on the same images; what all judges say counts.
    """
    names = digest.classifiers
    if len(names) != 2 or digest.results.vary[:1] != ("classifier",):
        return ""
    first, second = names
    found: dict[str, list[str]] = {}
    for one in digest.sets:
        rows = one.best([second]), one.best([first])
        if rows[0] is None or rows[1] is None or not (differences := one.differences(rows[0], rows[1])):
            continue
        ways = {difference.way for difference in differences}
        sizes = [number_words(difference, places([difference]), signed=True) for difference in differences]
        found.setdefault(_verdict(ways), []).append(f"{one.name} ({'; '.join(sizes)})")
    if not found:
        return ""
    judges = listed(
        [judge_words(judge) for judge in (digest.results.judge, *(one.judge for one in digest.results.others))]
    )
    verdicts = "; ".join(f"{verdict} on {listed(found[verdict])}" for verdict in VERDICTS if verdict in found)
    return f"{second} against {first}, each at its best, by {judges}: {verdicts}."


VERDICTS = ("significantly better", "significantly worse", "no significant difference", "the judges disagree")


def _verdict(ways: set[str]) -> str:
    """One of VERDICTS, for the ways in which the judges see a distance differ."""
    if len(ways) > 1:
        return VERDICTS[3]
    return {"lower": VERDICTS[0], "higher": VERDICTS[1], "same": VERDICTS[2]}[next(iter(ways))]


def standing(digest: Digest) -> str:
    """How much of the study there is: "18 of 24 cells: 2 failed, 4 have not been run"."""
    failed = len(digest.results.cells) - digest.num_done
    parts = [counted(failed, "cell") + " failed"] if failed else []
    if digest.results.missing:
        parts.append(f"{counted(digest.results.missing, 'cell')} not run yet")
    return f"{digest.num_done} of {counted(digest.num_cells, 'cell')}" + (f": {', '.join(parts)}" if parts else "")


def _sentences(digest: Digest, one: SetDigest) -> list[str]:
    best = one.best()
    if best is None:
        return ["No refined cell has a distance."]
    compared = [*_by_classifier(digest, one), *_robust_or_standard(digest, one)]
    return [_effect(one, best), *_alike(one, best), *compared, *_contested(digest, one)]


def _effect(one: SetDigest, best: Row) -> str:
    """What the best refinement does to the raw images."""
    decimals = places(row.distance for row in one.scored)
    lowest = f"{number_words(best.distance, decimals)} with {best.label}"
    if one.raw is None:
        return f"The lowest {one.measure} is {lowest}; the raw images' is not known."
    raw = number_words(one.raw.distance, decimals)
    change = best.from_raw
    if change is None:
        return f"The lowest {one.measure} is {lowest}, that of the raw images {raw}; not compared."
    if change.is_lower:
        return f"Refinement lowers the {one.measure} from {raw} to {lowest}, by {_size(change)}."
    if change.is_higher:
        return (
            f"No refinement lowers the {one.measure} of the raw images, {raw}; the lowest after it is "
            f"{lowest}, higher by {_size(change)}."
        )
    return (
        f"No refinement lowers the {one.measure} of the raw images, {raw}, significantly; the lowest after it is "
        f"{lowest}, a difference of {number_words(change, places([change]), signed=True)}."
    )


def _alike(one: SetDigest, best: Row) -> list[str]:
    """Which others do not differ significantly from the lowest."""
    if best.mark == BEST:
        return ["It is significantly lower than that of every other cell measured."] if len(one.refined) > 1 else []
    others = [row.label for row in one.tied if row is not best]
    return [f"Not significantly different from the lowest: {listed(others)}."] if best in one.tied and others else []


def _by_classifier(digest: Digest, one: SetDigest) -> list[str]:
    """What each classifier does at its best; nothing where there is only one."""
    found: dict[str, list[str]] = {"lower": [], "same": [], "higher": []}
    for name in digest.classifiers:
        row = one.best([name])
        if row is not None and row.from_raw is not None:
            found[row.from_raw.way].append(name)
    if sum(map(len, found.values())) < 2:
        return []
    parts = [
        f"{listed(names)} {words if len(names) > 1 else singular}"
        for names, words, singular in (
            (found["lower"], "lower it significantly", "lowers it significantly"),
            (found["same"], "do not change it significantly", "does not change it significantly"),
            (found["higher"], "raise it significantly", "raises it significantly"),
        )
        if names
    ]
    return [f"Each at its best setting, {'; '.join(parts)}."]


def _robust_or_standard(digest: Digest, one: SetDigest) -> list[str]:
    """The best of the classifiers trained to withstand something against the best of those that were not."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for classifier in digest.results.classifiers:
        if classifier.threat_model:
            kinds[classifier.threat_model == STANDARD].append(classifier.name)
    robust, standard = one.best(kinds[False]), one.best(kinds[True])
    if robust is None or standard is None:
        return []
    difference = one.difference(robust, standard)
    if difference is None:
        return []
    pair = f"The best robust classifier ({robust.label})", f"the best standard one ({standard.label})"
    if not difference.is_significant:
        interval = number_words(difference, places([difference]), signed=True)
        return [f"{pair[0]} does not differ significantly from {pair[1]}: {interval}."]
    way = "lower" if difference.is_lower else "higher"
    return [f"{pair[0]} ends at a distance {way} by {_size(difference)} than {pair[1]}."]


def _contested(digest: Digest, one: SetDigest) -> list[str]:
    """Where another judge sees another change of the raw images."""
    found = []
    for i, judge in enumerate(digest.results.others):
        seen: dict[tuple[str, str], list[str]] = {}
        for row in one.refined:
            opinion = row.opinions[i]
            if row.from_raw is not None and opinion is not None and opinion.way != row.from_raw.way:
                seen.setdefault((row.from_raw.way, opinion.way), []).append(row.label)
        found += [
            f"The judges disagree on {listed(labels)}: {WAYS[first]} by {judge_words(digest.results.judge)}, "
            f"{WAYS[second]} by {judge_words(judge.judge)}."
            for (first, second), labels in seen.items()
        ]
    return found


def _size(difference: Difference) -> str:
    """Without its sign: "10.9 [9.8, 12.0]"."""
    ends: Sequence[float] = sorted(map(abs, difference.interval))
    size = Estimate(abs(difference.value), (ends[0], ends[1]))
    return number_words(size, places([size]))
