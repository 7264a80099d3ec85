"""What people see of a run: progress bar, metrics, TensorBoard, and a table at the end."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from robust_models.errors import UserError
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.files import whole_file
from train.run import Findings, Run
from train.validation import selection

TABLE_ROWS = 10


class Reporter:
    """Rows of metrics.jsonl and TensorBoard for the step at which the run stands."""

    def __init__(self, run: Run) -> None:
        config, self.progress = run.config, run.progress
        self.config = config
        self.stack = ExitStack()
        self.log = self.stack.enter_context(MetricsLog(config.out, from_step=self.progress.reported))
        self.bar: tqdm[Any] = self.stack.enter_context(
            tqdm(
                total=run.total * config.batch_size,
                initial=self.progress.step * config.batch_size,
                unit="img",
                unit_scale=True,
                desc="train",
                smoothing=0.05,
                mininterval=1,
            )
        )

    def advance(self) -> None:
        """One step more in the progress bar."""
        self.bar.update(self.config.batch_size)

    def write(self, findings: Findings, lr: float) -> None:
        """A row for each of the findings; lr: the learning rate of the last step. UserError where the disk is full."""
        if findings.train is not None:
            means = findings.train
            self._row("train", {**means, "lr": lr, "images_per_s": self.bar.format_dict["rate"] or 0.0})
            shown = {name: f"{means[name]:.3f}" for name in ("loss", "accuracy")}
            if "auc" in means:  # objective energy
                shown |= {"climb": f"{means['climb_steps']:.0f}", "auc": f"{means['auc']:.2f}"}
            self.bar.set_postfix(shown)
        if findings.guard is not None:
            self._row("guard", findings.guard)
        if findings.scores is not None:
            self._row("validation", findings.scores)
        if (shown := findings.shown) is not None:
            self._on_disk(lambda: self.log.board.add_image("validation/attacked", shown, self.progress.step))
        if (made := findings.made) is not None:
            self._on_disk(lambda: self.log.board.add_image("validation/made", made, self.progress.step))

    def _row(self, kind: str, numbers: dict[str, float]) -> None:
        self._on_disk(lambda: self.log.write(self.progress.step, kind, numbers))

    def _on_disk(self, write: Callable[[], None]) -> None:
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


class Silence:
    """What the ranks after the first one report."""

    def advance(self) -> None:
        """Nothing."""
        pass

    def write(self, findings: Findings, lr: float) -> None:
        """Nothing."""
        pass

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def reporter(run: Run, ranks: Ranks) -> Reporter | Silence:
    """What this rank reports: all of the run on the first one, nothing on the others."""
    return Reporter(run) if ranks.is_first else Silence()


def table(folder: Path) -> str:
    """The evaluations of a run: the last ones, and the best ones marked; empty where nothing was held out."""
    rows = read_metrics(folder / "metrics.jsonl")
    train_at = {row["step"]: row for row in rows if row["kind"] == "train"}
    scores = [row for row in rows if row["kind"] == "validation" and row.keys() & {"clean_accuracy", "noisy_accuracy"}]
    if not scores:
        return ""
    unattacked = "noisy" if "noisy_accuracy" in scores[-1] else "clean"
    best = max(scores, key=lambda row: (selection(row), row["step"]))
    made = next((name for name in scores[-1] if name in ("generation_frechet", "generation_kid")), None)
    refined = next((name for name in scores[-1] if name in ("refined_frechet", "refined_kid")), None)
    refiner = min(scores, key=lambda row: (row[refined], -row["step"])) if refined else None
    shown = [row for row in scores if row is best or row is refiner or row in scores[-TABLE_ROWS:]]
    lines = [f"{'step':>9} {'loss':>8} {'lr':>9} {'images/s':>9} {f'{unattacked} %':>8} {'robust %':>9}"]
    if made:
        lines[0] += f" {made.removeprefix('generation_') + ' of made':>16} {'steps':>6}"
    if refined:
        lines[0] += f" {refined.removeprefix('refined_') + ' refined':>16}"
    for row in shown:
        train = train_at.get(row["step"], {})
        cells = [
            f"{row['step']:>9}",
            _cell(train.get("loss"), 8, ".3f"),
            _cell(train.get("lr"), 9, ".2g"),
            _cell(train.get("images_per_s"), 9, ".0f"),
            _cell(100 * row[f"{unattacked}_accuracy"], 8, ".2f"),
            _cell(100 * row["robust_accuracy"] if "robust_accuracy" in row else None, 9, ".2f"),
        ]
        if made:
            cells += [_cell(row[made], 16, ".4f"), _cell(row["generation_steps"], 6, ".0f")]
        if refined:
            cells.append(_cell(row[refined], 16, ".4f"))
        lines.append(" ".join(cells) + (" best" if row is best else "") + (" best refiner" if row is refiner else ""))
    return "\n".join(lines)


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


class MetricsLog:
    """Appends rows to metrics.jsonl and the same numbers to TensorBoard."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Rows of steps after from_step, left by a run that was killed later than its last state, are dropped."""
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= from_step]
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, kind: str, numbers: dict[str, float]) -> None:
        """One row; TensorBoard gets each number under `kind/name`."""
        self.file.write(json.dumps({"step": step, "kind": kind, **numbers}) + "\n")
        self.file.flush()
        for name, number in numbers.items():
            self.board.add_scalar(f"{kind}/{name}", number, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line cut off by a kill is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
