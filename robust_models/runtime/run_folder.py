"""A run's folder: JSON files, metrics as JSON lines, TensorBoard events."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from robust_models.runtime.files import whole_file


def write_json(path: Path, value: Any) -> None:
    """The JSON-ready value in a file, which appears whole. UserError where there is no room."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


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
