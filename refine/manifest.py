"""The manifest: one JSON row per image, in the order of the set."""

from collections.abc import Iterable, Iterator, Sequence

from refine.refine_batch import Outcome
from refine.work_folder import Row

DIGITS = 6
MEASURES = (  # of the target, but for the last
    *("confidence_before", "confidence_after", "loss_before", "loss_after", "on_target_before", "on_target_after"),
    "distance",
)
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
    """Means of some columns of a manifest, row by row, so that none of it is held in memory."""

    def __init__(self, names: Iterable[str]) -> None:
        self.sums = dict.fromkeys(names, 0.0)
        self.n = 0

    def over(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, each counted as it passes."""
        for row in rows:
            for name in self.sums:
                self.sums[name] += row[name]
            self.n += 1
            yield row

    def summary(self) -> dict[str, float]:
        """The mean of every column."""
        return {name: round(total / self.n, 4) for name, total in self.sums.items()}
