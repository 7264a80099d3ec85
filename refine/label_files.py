"""Labels, and other values by name, from the CSV and JSON files that people and tools write."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images import IMAGE_SUFFIXES
from robust_models.labels import class_indices

Value = str | int | float
_NAME_COLUMNS = ("file", "filename", "file_name", "name", "path", "image")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target")


class Row(NamedTuple):
    """A value and the name it belongs to; None where the table gives values only, in order."""

    name: str | None
    value: Value


def read_table(path: Path, *, field: str, names: Sequence[str], values: Sequence[str]) -> list[Row]:
    """The rows of a .json file, or of any other as CSV (comma, semicolon or tab), at least one.

    CSV: columns called one of `names` and one of `values` (case ignored), in any order; without such a header the first
    column names and the second is the value; a single column is values in order. JSON: {name: value}, [[name, value],
    ...], [value, ...], or one of these under a key among `values` (StyleGAN's {"labels": ...}). UserError, beginning
    with `field`, where the file is something else.
    """
    check_is_file(path, field=field)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise _unreadable(path, field, reason) from error
    where = f"{field}: {path}"
    rows = _from_json(text, where, values) if path.suffix.lower() == ".json" else _from_csv(text, where, names, values)
    if not rows:
        raise UserError(f"{where} is empty; expected a {values[0]} for each {names[0]}")
    return rows


def check_is_file(path: Path, *, field: str) -> None:
    """UserError, beginning with `field`, unless there is a regular file (a pipe or a device might never end)."""
    if not path.is_file():
        raise _unreadable(path, field, "not a regular file" if path.exists() else "No such file or directory")


def _unreadable(path: Path, field: str, reason: str | None) -> UserError:
    return UserError(f"{field}: {path} cannot be read ({reason}); give a CSV or JSON file")


def _from_json(text: str, where: str, values: Sequence[str]) -> list[Row]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})") from error
    if isinstance(content, dict):
        wrapped = [content[key] for key in values if isinstance(content.get(key), dict | list)]
        content = wrapped[0] if wrapped else content
    if isinstance(content, dict):
        entries = list(content.items())
    elif isinstance(content, list):
        entries = [entry if isinstance(entry, list) else (None, entry) for entry in content]
    else:
        raise UserError(f"{where} holds {type(content).__name__}; expected {{name: value}} or a list")
    rows = [_row(entry, f"{where}, entry {i}") for i, entry in enumerate(entries)]
    if len({row.name is None for row in rows}) > 1:
        raise UserError(f"{where} mixes entries with and without names; expected one kind")
    return rows


def _row(entry: Sequence[Any], where: str) -> Row:
    """(name or None, value) as JSON had it."""
    shown: Any = entry
    if len(entry) == 2:
        name, value = entry
        # To Python, but to nobody else, true is a number.
        if isinstance(name, str | None) and isinstance(value, str | int | float) and not isinstance(value, bool):
            return Row(name, value)
        shown = value if name is None else entry
    raise UserError(f"{where}: {json.dumps(shown)[:80]}; expected a name with a number or a class name")


def _from_csv(text: str, where: str, names: Sequence[str], values: Sequence[str]) -> list[Row]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",\t;", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        # Row numbers are line numbers, as an editor shows them.
        numbered = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{where} is not CSV ({error})") from error
    cells = [(line, row) for line, row in numbered if any(row)]
    if not cells:
        return []
    header = [cell.casefold() for cell in cells[0][1]]
    name_column = next((i for i, cell in enumerate(header) if cell in names), None)
    value_column = next((i for i, cell in enumerate(header) if cell in values), None)
    if name_column is None and value_column is None:
        name_column, value_column = (None, 0) if len(header) == 1 else (0, 1)
    else:
        cells = cells[1:]
        if value_column is None:
            raise UserError(f"{where} has no column {values[0]!r}; its header is {', '.join(header)}")
    rows = []
    for line, row in cells:
        wanted = [column for column in (name_column, value_column) if column is not None]
        if max(wanted) >= len(row) or not all(row[column] for column in wanted):
            raise UserError(f"{where}, line {line}: {delimiter.join(row)!r} lacks a {names[0]} or a {values[0]}")
        rows.append(Row(None if name_column is None else row[name_column], row[value_column]))
    return rows


def labels_from_file(
    path: Path | str, names: Sequence[str], class_names: Sequence[str], *, total: int | None = None
) -> Tensor:
    """The label of each of the images called `names` in a CSV or JSON file, as indices into class_names, int64 [N].

    See read_table for the layouts; StyleGAN's dataset.json is one. A label is an index or a class name.
    Names are relative paths, matched with or without suffix; the file may name images that are not in the set. Labels
    without names belong to the images in order and must be as many, or `total`, of which these are the first.
    """
    path = Path(path)
    ordered = values_from_file(path, names, field="targets", total=total)
    # A float is no label: as text it is refused with the class it may have meant.
    labels = [value if isinstance(value, int) else str(value) for value in ordered]
    return torch.tensor(class_indices(labels, class_names, source=f"targets: {path}"))


def values_from_file(path: Path, names: Sequence[str], *, field: str, total: int | None = None) -> list[Value]:
    """The label of each of the images called `names`, as it stands in the file; see labels_from_file.

    UserError, beginning with `field`, where the file has not one for each.
    """
    rows = read_table(path, field=field, names=_NAME_COLUMNS, values=_LABEL_COLUMNS)
    if rows[0].name is None:
        if len(rows) not in (len(names), total):
            raise UserError(
                f"{field}: {path} has {len(rows)} labels without names for {len(names)} images; give one for each, in "
                f"order, or name the image of each"
            )
        return [row.value for row in rows[: len(names)]]
    return _by_name(rows, names, f"{field}: {path}")


def _by_name(rows: Sequence[Row], names: Sequence[str], where: str) -> list[Value]:
    """The value of each name; an entry of the very name, suffix and all, comes before one of its stem."""
    table: dict[str, Value] = {}
    stems: dict[str, set[Value]] = {}
    for row in rows:
        name = _normal(str(row.name))
        if table.setdefault(name, row.value) != row.value:
            raise UserError(f"{where} names {row.name} twice, as {table[name]} and as {row.value}")
        stems.setdefault(_stem(name), set()).add(row.value)
    found: list[Value] = []
    missing: list[str] = []
    for name in map(_normal, names):
        values = {table[name]} if name in table else stems.get(_stem(name), set())
        if len(values) > 1:
            raise UserError(f"{where} has several files called {name} but for their suffix, with different labels")
        if values:
            found.extend(values)
        else:
            missing.append(name)
    if missing:
        raise UserError(
            f"{where} has no label for {len(missing)} of {len(names)} images, the first {missing[0]} (it names "
            f"{rows[0].name}{', ...' if len(rows) > 1 else ''})"
        )
    return found


def _normal(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name
