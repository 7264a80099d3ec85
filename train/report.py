"""What people see of a run: progress bar, metrics, TensorBoard, and a table at the end."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from robust_models.errors import UserError
from robust_models.runtime.run_folder import MetricsLog, read_metrics
from train.config import TrainConfig
from train.state import Progress

TABLE_ROWS = 10


class Reporter:
    """Rows of metrics.jsonl and TensorBoard for the step at which the progress stands."""

    def __init__(self, config: TrainConfig, progress: Progress, total: int) -> None:
        self.config, self.progress = config, progress
        self.started = time.perf_counter() - progress.wall_s
        self.stack = ExitStack()
        self.log = self.stack.enter_context(MetricsLog(config.out, from_step=progress.step))
        self.bar: tqdm[Any] = self.stack.enter_context(
            tqdm(
                total=total * config.batch_size,
                initial=progress.step * config.batch_size,
                unit="img",
                unit_scale=True,
                desc="train",
                smoothing=0.05,
                mininterval=1,
            )
        )

    @property
    def wall_s(self) -> float:
        """Of the run and of those it continues."""
        return time.perf_counter() - self.started

    def advance(self) -> None:
        self.bar.update(self.config.batch_size)

    def row(self, means: dict[str, float], lr: float) -> None:
        rate = self.bar.format_dict["rate"] or 0.0
        self._write("train", {**means, "lr": lr, "images_per_s": rate})
        self.bar.set_postfix(loss=f"{means['loss']:.3f}", accuracy=f"{means['accuracy']:.3f}")

    def scores(self, scores: dict[str, float], shown: Tensor | None) -> None:
        self._write("validation", scores)
        if shown is not None:
            self._told(lambda: self.log.board.add_image("validation/attacked", shown, self.progress.step))

    def guard(self, row: dict[str, float]) -> None:
        self._write("guard", row)

    def _write(self, kind: str, numbers: dict[str, float]) -> None:
        self._told(lambda: self.log.write(self.progress.step, kind, numbers))

    def _told(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise UserError(
                f"step {self.progress.step}: {self.config.out} cannot be written ({error.strerror}); the last good "
                "state is kept: make room and run the same command again"
            ) from error

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()


def table(folder: Path) -> str:
    """The evaluations of a run: the last ones, and the best one marked; empty where nothing was held out."""
    rows = read_metrics(folder / "metrics.jsonl")
    train_at = {row["step"]: row for row in rows if row["kind"] == "train"}
    scores = [row for row in rows if row["kind"] == "validation" and "clean_accuracy" in row]
    if not scores:
        return ""
    best = max(scores, key=lambda row: (row.get("robust_accuracy", row["clean_accuracy"]), row["step"]))
    shown = [row for row in scores if row is best or row in scores[-TABLE_ROWS:]]
    lines = [f"{'step':>9} {'loss':>8} {'lr':>9} {'images/s':>9} {'clean %':>8} {'robust %':>9}"]
    for row in shown:
        train = train_at.get(row["step"], {})
        cells = [
            f"{row['step']:>9}",
            _cell(train.get("loss"), 8, ".3f"),
            _cell(train.get("lr"), 9, ".2g"),
            _cell(train.get("images_per_s"), 9, ".0f"),
            _cell(100 * row["clean_accuracy"], 8, ".2f"),
            _cell(100 * row["robust_accuracy"] if "robust_accuracy" in row else None, 9, ".2f"),
        ]
        lines.append(" ".join(cells) + (" best" if row is best else ""))
    return "\n".join(lines)


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
