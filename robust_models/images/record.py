"""The record beside an output: what made it and how it was left, so that --overwrite replaces nothing else.

OUT.run.json holds the settings and the summary of the run that made OUT, and the fingerprint of what it wrote.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robust_models.errors import UserError

Values = dict[str, Any]
RECORD_SUFFIX = ".run.json"  # after the output's name


def record_path(out: Path) -> Path:
    """Where the record of the output lies."""
    return out.with_name(out.name + RECORD_SUFFIX)


def record_of(built: Path, settings: Values, summary: Values) -> Values:
    """The record, ready for JSON, of an output built at another place of the same file system and then moved."""
    return {"settings": settings, "summary": summary, "files": len([*_files(built)]), "fingerprint": _state(built)}


def finished_run(out: Path, settings: Values, *, overwrite: bool) -> Values | None:
    """The summary of the run with these settings that made `out`; None where a run may begin.

    UserError, which names the reason, where something else stands there: without overwrite whatever it is; with it,
    what was not made by a run that left a record, or has been changed or added to since. Links and devices are never
    replaced.
    """
    _check_kind(out)
    if not out.exists():
        return None
    record = _read(record_path(out))
    if record is None:
        if overwrite:
            raise UserError(
                f"out: {out} was not made by a run of this program (no {record_path(out).name} beside it) and is not "
                "replaced; move or remove it, or choose another place"
            )
        raise UserError(f"out: {out} exists; remove it, choose another place, or pass --overwrite")
    unchanged = record["fingerprint"] == _state(out)
    if overwrite and unchanged:
        return None
    if not unchanged:
        raise UserError(
            f"out: {out} has changed since a run made it ({_difference(out, record)}) and is not replaced; move or "
            "remove it, or choose another place"
        )
    if changed := changed_settings(record["settings"], settings):
        raise UserError(f"out: {out} exists, made with another {changed[0]}; choose another place, or pass --overwrite")
    return record["summary"]


def changed_settings(stored: Values, settings: Values) -> list[str]:
    """What differs between settings that were stored as JSON and a run's, in words: "eps (1.0 there, 2.0 now)"."""
    now = json.loads(json.dumps(settings))
    names = [name for name in {**now, **stored} if now.get(name) != stored.get(name)]
    return [f"{name} ({stored.get(name)} there, {now.get(name)} now)" for name in names]


def _check_kind(out: Path) -> None:
    if out.is_symlink():
        raise UserError(f"out: {out} is a link to {out.readlink()}; name the place itself")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UserError(f"out: {out} is neither a file nor a folder (a device, a pipe or a socket); name another place")


def _read(path: Path) -> Values | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(record, dict) and {"settings", "summary", "files", "fingerprint"} <= set(record)
    return record if known else None


def _files(path: Path) -> Iterator[Path]:
    """The file, or every file below the folder: hidden ones too, and links as what they are."""
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            yield from (Path(folder, name) for name in (*names, *links))
    else:
        yield path


def _state(path: Path) -> str:
    """Names, sizes and times of change of all files, as one number in hex."""
    total = 0
    for file in _files(path):
        status = file.lstat()
        fields = f"{os.path.relpath(file, path)}\n{status.st_size}\n{status.st_mtime_ns}"
        total += int.from_bytes(hashlib.sha256(os.fsencode(fields)).digest()[:16])
    return f"{total % 2**64:016x}"


def _difference(out: Path, record: Values) -> str:
    if not out.is_dir():
        return "its size or time differs"
    files = list(_files(out))
    counts = f"{len(files)} files, {record['files']} were written" if len(files) != record["files"] else "as many files"
    newest = max(files, key=lambda file: file.lstat().st_mtime_ns, default=None)
    return counts if newest is None else f"{counts}; the newest is {newest.relative_to(out)}"
