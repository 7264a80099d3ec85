"""The folder beside the output where a run keeps what it has finished, so that it can be killed at any moment.

    OUT.work/run.json              the settings that decide the result; once all is assembled, the summary too
             eps.json              what --eps auto has found
             samples-00012.npy     of a shard, where a generator's samples are read more than once
             targets.npy           [N], where they took the whole set to know
             logits-00012.npy      of a shard, where the targets need them first
             shard-00012.jsonl     the shard's manifest rows
             shard-00012.npy       its images as they are to be; written last: where it stands the shard is finished
             manifest.jsonl        assembled from the shards, and
             assembled/OUT         so is the set
             record.json           what OUT.run.json is to say; what remains is to move the three to their places

Every file is written whole: it is there, complete, or not there. run.json comes first and goes last. The ranks of a
torchrun job take shards in turn; the first one claims the folder, assembles and moves.
"""

import json
import os
import shutil
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from robust_models.errors import UserError
from robust_models.images.record import RECORD_SUFFIX, changed_settings, finished_run, record_of
from robust_models.runtime.config import as_json
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.files import exclusive, whole_file

Row = dict[str, Any]
Add = Callable[[Tensor, list[Row]], None]
Begun = TypeVar("Begun")
STATE = "run.json"
_PARTIAL = ".*.partial"  # what a killed run was writing (runtime/files.py)
_AT_ONCE = 256  # images, while the shards are assembled


class Shards:
    """Images cut into shards of `size`, the last one of each set shorter: no shard has images of two sets."""

    def __init__(self, n: int | Sequence[int], size: int) -> None:
        """n: how many images there are, or how many in each of several sets that follow each other."""
        counts = [n] if isinstance(n, int) else list(n)
        self.size = size
        self.n = sum(counts)
        self._parts: list[slice] = []
        for start, count in zip(accumulate(counts, initial=0), counts, strict=False):
            starts = range(start, start + count, size)
            self._parts += [slice(first, min(first + size, start + count)) for first in starts]

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, k: int) -> slice:
        """The images of shard k."""
        return self._parts[k]

    def count(self, k: int) -> int:
        """How many images shard k has."""
        return self.part(k).stop - self.part(k).start

    def holder(self, i: int) -> int:
        """The shard of image i."""
        return bisect_right(self._parts, i, key=lambda part: part.start) - 1


class WorkFolder:
    """What one run has finished; `out` is the user's name for the result, which messages give."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".work")
        self.assembled = self.path / "assembled" / out.name
        self.manifest = self.path / "manifest.jsonl"
        self.manifest_out = out.with_name(out.name + ".manifest.jsonl")
        self.record = self.path / "record.json"
        self.record_out = out.with_name(out.name + RECORD_SUFFIX)

    def finished(self, settings: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
        """The summary of an earlier run with equal settings, whose result stands at `out`; None where there is none.

        UserError where something else stands there that may not be replaced (images/record.py).
        """
        if self.is_assembled:
            return None  # what remains to be moved may be half moved
        places = (self.out, self.manifest_out, self.record_out)
        if not any(os.path.lexists(place) for place in places):
            return None
        found = finished_run(self.out, settings, overwrite=overwrite)
        for path in places[1:]:
            if path.exists() and not (path.is_file() and self.record_out.is_file()):
                raise UserError(f"out: {path} is of something else; move it away, or choose another --out")
        return found

    @property
    def is_assembled(self) -> bool:
        """Whether all is made and put together, so that only moving it to its place remains."""
        return self.has(STATE) and "summary" in self._read_state()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is finished of what the settings describe."""
        return all(path.name == STATE for path in self.path.iterdir())

    def claim(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Makes the folder, or takes up that of an earlier run with equal settings.

        UserError naming the first setting that differs; with overwrite, or where nothing is finished, the other run's
        folder is dropped instead.
        """
        if self.has(STATE):
            self._clean(_PARTIAL)
            changed = changed_settings(self._read_state()["settings"], settings)
            if changed and not overwrite and not self.is_empty:
                raise UserError(
                    f"out: {self.path} holds an unfinished run with another {changed[0]}; repeat that run's command to "
                    "finish it, choose another --out, or pass --overwrite to drop it"
                )
            if not changed:
                return
            self.remove()
        elif self.path.exists():
            self._clean(_PARTIAL)
            if any(self.path.iterdir()):
                raise UserError(f"out: {self.path} is no run's work folder; remove it or choose another --out")
        self.write_json(STATE, {"settings": settings})

    def agreed(self, name: str, value: Any) -> Any:
        """What run.json has under this name; `value`, which it then has, where there is nothing yet."""
        state = self._read_state()
        if name not in state:
            self.write_json(STATE, state | {name: value})
        return state.get(name, value)

    def has_shard(self, k: int) -> bool:
        """Whether shard k is finished."""
        return self._shard(k, "npy").exists()

    @contextmanager
    def writing_shard(self, k: int, shape: tuple[int, ...], depth: str) -> Iterator[Add]:
        """Gives `add(pixels [n,3,H,W], rows)`, to be called until `shape` is full; then the shard is finished."""
        written = 0
        with (
            whole_file(self._shard(k, "npy")) as pixels_file,  # entered first, so renamed last
            whole_file(self._shard(k, "jsonl")) as rows_file,
            pixels_file.open("wb") as pixels_out,
            rows_file.open("w", encoding="utf-8") as rows_out,
        ):
            _write_header(pixels_out, shape, np.dtype(depth))

            def add(pixels: Tensor, rows: list[Row]) -> None:
                nonlocal written
                pixels_out.write(_bytes(pixels.numpy()))
                rows_out.writelines(map(as_line, rows))
                written += len(pixels)

            yield add
            assert written == shape[0], f"{written} of {shape[0]} images written"

    def pixels(self, k: int) -> np.ndarray:
        """The finished images [n,3,H,W] of shard k, mapped from the disk."""
        return np.load(self._shard(k, "npy"), mmap_mode="r")

    def image(self, shards: Shards, i: int) -> Tensor:
        """Image i of the set, finished, [1,3,H,W]."""
        k = shards.holder(i)
        return torch.from_numpy(self.pixels(k)[[i - shards.part(k).start]])

    def copy_pixels(self, shards: Shards, add_of: Callable[[int], Callable[[Tensor], None]]) -> None:
        """Gives the finished images of every shard k, in their order and a few at a time, to add_of(k)."""
        for k in range(len(shards)):
            add, pixels = add_of(k), self.pixels(k)
            for start in range(0, len(pixels), _AT_ONCE):
                add(torch.from_numpy(pixels[start : start + _AT_ONCE].copy()))

    def rows(self, k: int) -> Iterator[Row]:
        """The manifest of shard k."""
        with self._shard(k, "jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def rows_of(self, shards: Shards, index: Sequence[int]) -> list[Row]:
        """The manifest rows of these images of the set; index ascends."""
        wanted, found = set(index), []
        for k in sorted({*map(shards.holder, index)}):
            numbered = enumerate(self.rows(k), start=shards.part(k).start)
            found += [row for i, row in numbered if i in wanted]
        return found

    def row_starts(self, k: int) -> list[int]:
        """Where each row of shard k's manifest begins, bytes."""
        lines = self._shard(k, "jsonl").read_bytes().splitlines(keepends=True)
        return list(accumulate(map(len, lines), initial=0))[:-1]

    def row_at(self, k: int, start: int) -> Row:
        """The row of shard k's manifest that begins at this byte."""
        with self._shard(k, "jsonl").open("rb") as lines:
            lines.seek(start)
            return json.loads(lines.readline())

    def write_manifest(self, rows: Iterable[Row]) -> None:
        """Writes the manifest of the whole set, whole."""
        with whole_file(self.manifest) as partial, partial.open("w", encoding="utf-8") as lines:
            lines.writelines(map(as_line, rows))

    def has(self, name: str) -> bool:
        """Whether the file of this name is there, and so complete."""
        return (self.path / name).exists()

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Writes an .npy of this name, whole."""
        with whole_file(self.path / name) as partial, partial.open("wb") as file:
            _write_header(file, array.shape, array.dtype)
            file.write(_bytes(array))

    def read_array(self, name: str) -> np.ndarray:
        """The array of an .npy of this name."""
        return np.load(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of this name, whole."""
        with whole_file(self.path / name) as partial:
            partial.write_text(json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """What the JSON file of this name holds."""
        return json.loads((self.path / name).read_text())

    def drop_assembled(self) -> None:
        """Removes what a run that was killed behind its assembly had put together."""
        if self.assembled.is_dir():
            shutil.rmtree(self.assembled)

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the run as assembled."""
        self.write_json(self.record.name, record_of(self.assembled, self._read_state()["settings"], summary))
        self.write_json(STATE, {**self._read_state(), "summary": summary})

    def publish(self) -> dict[str, Any]:
        """Moves what is assembled to its place, and then removes the work folder; gives the summary.

        Each step is passed over where it is already done, so that a kill here costs nothing either.
        """
        summary = self._read_state()["summary"]
        if self.manifest.exists():
            self.manifest.replace(self.manifest_out)
        if self.assembled.exists():
            if self.out.is_dir():
                self.out.rename(self.path / "replaced")
            self.assembled.replace(self.out)
        if self.record.exists():
            self.record.replace(self.record_out)
        self.remove()
        return summary

    def remove(self) -> None:
        """run.json goes last, so that a run killed meanwhile knows what the rest is."""
        self._clean("*", but=self.path / STATE)
        (self.path / STATE).unlink()
        self.path.rmdir()

    def _clean(self, pattern: str, *, but: Path | None = None) -> None:
        for path in self.path.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != but:
                path.unlink()

    def _read_state(self) -> dict[str, Any]:
        return self.read_json(STATE)

    def _shard(self, k: int, kind: str) -> Path:
        return self.path / f"shard-{k:05d}.{kind}"


def made_once(
    ranks: Ranks,
    work: WorkFolder,
    settings: dict[str, Any],
    *,
    overwrite: bool,
    begin: Callable[[], Begun],
    make: Callable[[Begun], dict[str, Any] | None],
) -> dict[str, Any] | None:
    """What make(begin()) puts into the work folder, moved to its place; an equal run's that stands there is kept.

    begin: UserError for what does not fit, before anything is written. make gives the summary on the first rank, None
    on the others, which only help; so does this. What a run that fails or is stopped has finished is gone on with.
    """
    with exclusive(work.out) if ranks.is_first else nullcontext():
        if done := ranks.share(work.finished(settings, overwrite=overwrite) if ranks.is_first else None):
            return done | {"already_done": True} if ranks.is_first else None
        begun = begin()
        if ranks.is_first:
            work.claim(settings, overwrite=overwrite)
        if not ranks.share(ranks.is_first and work.is_assembled):
            with _keeping_what_is_finished(work, ranks):
                summary = make(begun)
                if summary is not None:
                    work.finish(summary)
        return work.publish() if ranks.is_first else None


@contextmanager
def _keeping_what_is_finished(work: WorkFolder, ranks: Ranks) -> Iterator[None]:
    """Where the block fails or is stopped, says what stands; a folder in which nothing is finished goes."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # the latter: SIGTERM, or another rank has ended
        if ranks.world == 1 and work.is_empty:  # others may be writing
            work.remove()
        if ranks.is_first and not isinstance(error, Exception):
            print(f"\nstopped: {standing(work.out)}", file=sys.stderr)
        raise


def my_shards(
    ranks: Ranks,
    shards: Shards,
    what: str,
    is_done: Callable[[int], bool],
    *,
    amount: Callable[[int], int] | None = None,
    unit: str = "img",
) -> Iterator[tuple[int, "tqdm[Any]"]]:
    """This rank's shards among those not done, with a bar over amount(k) of each (None: its images).

    The first rank's bar is shown. All ranks come here together.
    """
    done = ranks.share([is_done(k) for k in range(len(shards))] if ranks.is_first else [])
    mine = [k for k in range(len(shards)) if not done[k]][ranks.rank :: ranks.world]
    label = what if ranks.world == 1 else f"{what} (rank 0 of {ranks.world})"
    total = sum(map(amount or shards.count, mine))
    with tqdm(total=total, unit=unit, desc=label, disable=not ranks.is_first or not mine) as bar:
        for k in mine:
            yield k, bar


def standing(out: Path) -> str:
    """What there is of an unfinished run to `out`, and how it goes on, in words."""
    work = WorkFolder(out)
    if work.is_assembled:
        return f"all is done and lies in {work.path}; the same command moves it to {out}"
    shards = len(list(work.path.glob("shard-*.npy")))
    if not shards:
        goes_on = "goes on with the samples" if any(work.path.glob("samples-*.npy")) else "begins anew"
        return f"nothing of {out} was finished; the same command {goes_on}"
    return f"{shards} finished shards are kept in {work.path}; the same command goes on from there"


def as_line(row: Row) -> str:
    """The row as a line of JSON."""
    return as_json(row, ensure_ascii=False) + "\n"


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _bytes(array: np.ndarray) -> memoryview:
    """What numpy itself would write; its own writing reports a full disk without the reason."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
