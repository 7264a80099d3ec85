"""The file of answers: SQLite, one row for each answer, on disk before it is confirmed.

A connection for each use: threads and processes may write side by side, and nothing is left open for a kill to break.
SQLite's rollback journal, not its write-ahead log, whose index in mapped memory kills the process on a full disk.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.survey.order import Choice, Item, Kind, Side
from robust_models.errors import UserError
from robust_models.runtime.files import is_no_room

FORMAT = 1  # raised whenever an older file would be read wrongly
_SCHEMA = (
    "CREATE TABLE survey (key TEXT PRIMARY KEY, value TEXT NOT NULL)",  # values are JSON
    "CREATE TABLE pairs (number INTEGER PRIMARY KEY, class TEXT)",
    """CREATE TABLE answers (
        id INTEGER PRIMARY KEY,
        rater TEXT NOT NULL,
        number INTEGER NOT NULL REFERENCES pairs,
        kind TEXT NOT NULL CHECK (kind IN ('pair', 'check')),
        target TEXT NOT NULL CHECK (target IN ('left', 'right')),  -- side of the refined, or intact, image
        choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')),
        milliseconds INTEGER NOT NULL,
        time TEXT NOT NULL,  -- UTC
        UNIQUE (rater, kind, number)
    )""",
)
_WAIT_S = 30  # for others who write
_BROKEN = (sqlite3.Error, json.JSONDecodeError)


@dataclass(frozen=True)
class Answer:
    """One row."""

    rater: str
    number: int
    kind: Kind
    target: Side
    choice: Choice
    milliseconds: int

    @property
    def is_tie(self) -> bool:
        """ "No difference" was chosen."""
        return self.choice == "tie"

    @property
    def hits(self) -> bool:
        """The refined image, of a check the intact one, was chosen."""
        return self.choice == self.target


@dataclass(frozen=True)
class Contents:
    """All that a file of answers holds."""

    meta: dict[str, Any]
    classes: dict[int, str | None]  # of each pair, by its number
    answers: list[Answer]  # in the order given


class Store:
    """A file of answers that is written to."""

    def __init__(self, path: Path, meta: Mapping[str, Any], classes: Mapping[int, str | None]) -> None:
        """Begins the file, or goes on with one of the same survey. UserError where it is something else.

        meta: what the survey is, JSON-ready; "settings" and "sha256" must be what they were when it began.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                if _is_empty(connection):
                    _begin(connection, meta, classes)
                found = _contents(connection, path)
        except (*_BROKEN, OSError) as error:
            do = "make room and run the same command again" if _is_full(error) else "name another"
            raise UserError(f"out: {path} cannot be used as a file of answers ({error}); {do}") from error
        _check_same(path, found, meta, classes)

    def answered(self, rater: str) -> set[tuple[Kind, int]]:
        """(kind, number) of what the rater has answered."""
        with self._open() as connection:
            return set(connection.execute("SELECT kind, number FROM answers WHERE rater = ?", (rater,)))

    def add(self, rater: str, item: Item, choice: Choice, milliseconds: int) -> None:
        """The first answer to an item stands."""
        row = (rater, item.number, item.kind, item.target, choice, milliseconds, _now())
        columns = "rater, number, kind, target, choice, milliseconds, time"
        with self._open() as connection:
            connection.execute(f"INSERT OR IGNORE INTO answers ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def take_back(self, rater: str) -> None:
        """The rater's last answer, if any, is gone."""
        last = "SELECT max(id) FROM answers WHERE rater = ?"
        with self._open() as connection:
            connection.execute(f"DELETE FROM answers WHERE id = ({last})", (rater,))

    def count(self) -> tuple[int, int]:
        """Answers and raters."""
        with self._open() as connection:
            return connection.execute("SELECT count(*), count(DISTINCT rater) FROM answers").fetchone()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose transaction is committed, and synced, at the end."""
        with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")  # that the journal is gone, which commits, too
            with connection:
                yield connection


def read_answers(path: Path) -> Contents:
    """UserError where the file is missing, broken, or no file of answers."""
    if not path.is_file():
        raise UserError(f"answers: no file {path}; give what the survey's --out made")
    try:
        # rw, where the file may be written: what a killed survey left half done must be rolled back.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=_WAIT_S)) as connection:
            return _contents(connection, path)
    except _BROKEN as error:
        raise UserError(f"answers: {path} is no file of answers, or broken ({error})") from error


def _is_full(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or is_no_room(error)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def _begin(connection: sqlite3.Connection, meta: Mapping[str, Any], classes: Mapping[int, str | None]) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)
    values = {"format": FORMAT, "begun": _now(), **meta}
    connection.executemany("INSERT INTO survey VALUES (?, ?)", [(key, json.dumps(values[key])) for key in values])
    connection.executemany("INSERT INTO pairs VALUES (?, ?)", classes.items())


def _contents(connection: sqlite3.Connection, path: Path) -> Contents:
    meta = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM survey")}
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: answers of format {meta.get('format')}; this version reads format {FORMAT}")
    columns = "rater, number, kind, target, choice, milliseconds"
    answers = [Answer(*row) for row in connection.execute(f"SELECT {columns} FROM answers ORDER BY id")]
    return Contents(meta, dict(connection.execute("SELECT number, class FROM pairs")), answers)


def _check_same(path: Path, found: Contents, meta: Mapping[str, Any], classes: Mapping[int, str | None]) -> None:
    for name, begun_with in found.meta["settings"].items():
        now = meta["settings"][name]
        if now != begun_with:
            raise UserError(
                f"{name.replace('_', '-')}: {path} was begun with {json.dumps(begun_with)}, now it is "
                f"{json.dumps(now)}; give the same, or another --out"
            )
    for which, digest in found.meta["sha256"].items():
        if meta["sha256"][which] != digest:
            raise UserError(f"{which}: {path} was begun with other images; give the same set, or another --out")
    if found.classes != dict(classes):
        raise UserError(f"labels: {path} was begun with other classes; give the same, or another --out")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
