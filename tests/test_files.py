"""Files appear whole, one writer at a time."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from robust_models.errors import UserError
from robust_models.runtime import files
from robust_models.runtime.files import exclusive, locked, sweep_partials, whole_file, whole_folder

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("name", ["run", "images.npz", "a b [1]*.tar"])
def test_the_second_writer_of_an_output_gets_one_line(tmp_path, name):
    out = tmp_path / "deep" / name
    with exclusive(out):
        with pytest.raises(UserError, match=rf"is being written by .* \(process {os.getpid()} on .*\); wait"):
            exclusive(out).__enter__()
        with exclusive(out.with_name("another")):
            pass
    with exclusive(out):  # free again
        pass
    assert list(out.parent.iterdir()) == []  # no lock is left behind


def _hold(path, held):
    with exclusive(path):
        held.set()
        signal.pause()


def test_a_killed_writer_holds_nothing(tmp_path):
    held = FORK.Event()
    process = FORK.Process(target=_hold, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=f"process {process.pid} on"):
        exclusive(tmp_path / "run").__enter__()
    process.kill()
    process.join()
    with exclusive(tmp_path / "run"):
        pass


def test_children_that_are_forked_meanwhile_do_not_hold_the_lock(tmp_path):
    """A loader's workers may outlive a killed run by seconds, in which it is started again."""
    with exclusive(tmp_path / "run"):
        child = FORK.Process(target=signal.pause)
        child.start()
    try:
        with exclusive(tmp_path / "run"):
            pass
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_goes_unprotected(tmp_path, monkeypatch, code):
    def no_lock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", no_lock)
    with exclusive(tmp_path / "run"):
        pass
    with pytest.raises(OSError, match=r"\[Errno"), locked(tmp_path / "claim.lock"):
        pass


def test_a_system_without_fcntl_goes_unprotected(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with exclusive(tmp_path / "run"), exclusive(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        exclusive(tmp_path / "file" / "run").__enter__()


def test_only_what_killed_writers_left_is_swept(tmp_path):
    for name in ("out[1].npz", "other.npz"):
        file, folder = whole_file(tmp_path / name), whole_folder(tmp_path / name)
        file.__enter__()
        (folder.__enter__() / "inside").write_text("half")
    kept = tmp_path / ".hidden"
    kept.write_text("")
    (tmp_path / "notes.partial").write_text("")
    sweep_partials(tmp_path, "out[1].npz")
    assert len(list(tmp_path.glob(".other.npz.*.partial"))) == 2
    assert list(tmp_path.glob(".out*")) == []
    sweep_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "notes.partial"]


def test_others_may_read_what_a_writer_made_private(tmp_path):
    umask = os.umask(0o022)
    try:
        with whole_file(tmp_path / "file") as file:
            file.write_text("x")
        with whole_folder(tmp_path / "folder") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "private").touch(mode=0o600)
    finally:
        os.umask(umask)
    for name, mode in {"file": 0o644, "folder": 0o755, "folder/inner/private": 0o644}.items():
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name


@pytest.mark.parametrize("write", [whole_file, whole_folder])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_is_no_file_is_not_replaced(tmp_path, write, kind):
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place = Path("/dev/null")
    else:
        place.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"is no (file|folder) and is not replaced; name another place"), write(place):
        pass
    assert not place.is_file()
    assert not place.is_dir()
