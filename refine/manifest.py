"""The manifest: one JSON row per image, in the order of the set."""

from collections.abc import Iterable, Sequence

from refine.refine_batch import Outcome
from refine.work_folder import Row

DIGITS = 6
MEASURES = ("confidence", "loss", "on_target")  # of the target, before and after
UNTOUCHED = "untouched"  # instead of a label's source: the image was left alone


def rows(
    outcome: Outcome, names: Iterable[str], class_names: Sequence[str], label_source: str, resized: Row | None = None
) -> list[Row]:
    """The rows of a batch.

    source, target (index) and class (name), label_source ("untouched" where the image was left alone), confidence in
    the target, loss and on_target before and after, and distance: the norm of the change, pixels in [0,1]. Where the
    classifier sees the images resized, `resized` says from which size to which.
    """
    columns = outcome._asdict()
    touched = columns.pop("touched").tolist()
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {
            "source": name,
            "class": class_names[numbers[0]],
            "label_source": label_source if is_touched else UNTOUCHED,
            **{key: _plain(number) for key, number in zip(columns, numbers, strict=True)},
            **(resized or {}),
        }
        for name, is_touched, numbers in zip(names, touched, values, strict=True)
    ]


def _plain(number: float) -> float:
    return round(number, DIGITS) if isinstance(number, float) else number


class Means:
    """Means over a manifest, row by row, so that no column of it is held in memory."""

    def __init__(self) -> None:
        names = [f"{measure}_{when}" for measure in MEASURES for when in ("before", "after")]
        self.sums = dict.fromkeys([*names, "distance"], 0.0)
        self.n = self.untouched = 0

    def add(self, row: Row) -> None:
        """Counts one row."""
        for name in self.sums:
            self.sums[name] += row[name]
        self.n += 1
        self.untouched += row["label_source"] == UNTOUCHED

    def summary(self) -> dict[str, float]:
        """N, how many images were left alone, and the mean of every measure."""
        means = {name: round(total / self.n, 4) for name, total in self.sums.items()}
        return {"n": self.n, "untouched": self.untouched, **means}
