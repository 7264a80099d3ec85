"""How far raters agree beyond chance."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 where all agree, 0 where agreement is that of chance, below for worse.

    units: the values that each unit got, from as many raters as judged it; units with fewer than two do not count.
    None where alpha is not defined: nothing to compare, or a single value throughout. Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", section C.
    """
    totals: Counter[Hashable] = Counter()
    disagreeing = 0.0  # ordered pairs of unlike values within units, each unit weighted as its number of values
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        totals += counts
        like = sum(count * (count - 1) for count in counts.values())
        disagreeing += (len(values) * (len(values) - 1) - like) / (len(values) - 1)
    n = totals.total()
    by_chance = n * n - sum(count * count for count in totals.values())
    return None if by_chance == 0 else 1 - (n - 1) * disagreeing / by_chance
