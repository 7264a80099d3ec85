"""The samples of one tar shard, as WebDataset groups them: neighbours that share a name up to its first dot."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from robust_models.errors import UserError
from robust_models.images.codec import IMAGE_SUFFIXES

_BLOCK = 512  # bytes


@dataclass(frozen=True)
class Sample:
    """One sample's files, in order; `image` is the one that is refined."""

    shard: Path
    key: str
    members: tuple[tarfile.TarInfo, ...]

    @property
    def image(self) -> tarfile.TarInfo | None:
        images = [member for member in self.members if f".{extension(member)}" in IMAGE_SUFFIXES]
        if len(images) > 1:
            names = " and ".join(member.name for member in images)
            raise UserError(f"{self.shard}: sample {self.key} has several images ({names}); leave one in each sample")
        return images[0] if images else None

    def label(self, archive: tarfile.TarFile) -> int | None:
        """The number in `.cls`, else the `label` in `.json`; None where there is neither."""
        by_extension = {extension(member): member for member in self.members}
        if "cls" in by_extension:
            text = _content(archive, by_extension["cls"]).strip()
            if not text.isdigit():
                raise UserError(f"{self.shard}: {by_extension['cls'].name} holds {text[:20]!r}; expected a class index")
            return int(text)
        if "json" not in by_extension:
            return None
        try:
            found = json.loads(_content(archive, by_extension["json"]))
        except ValueError as error:
            raise UserError(f"{self.shard}: {by_extension['json'].name} is not JSON ({error})") from error
        label = found.get("label") if isinstance(found, dict) else None
        return label if type(label) is int else None


def samples(shard: Path, archive: tarfile.TarFile) -> Iterator[Sample]:
    """All samples of an open shard; UserError where it is cut short or broken. Directories and links are left out."""
    files = (member for member in _members(shard, archive) if member.isreg())
    for key, members in groupby(files, _key):
        yield Sample(shard, key, tuple(members))


def extension(member: tarfile.TarInfo) -> str:
    """ "train/0001.seg.PNG" -> "seg.png"."""
    return member.name.rpartition("/")[2].partition(".")[2].lower()


@contextmanager
def opened(shard: Path) -> Iterator[tarfile.TarFile]:
    try:
        archive = tarfile.open(shard, "r:")
    except tarfile.TarError as error:
        raise UserError(f"{shard}: not a readable tar ({error}); a compressed one must be unpacked first") from error
    with archive:
        yield archive


def forget_members(archive: tarfile.TarFile) -> None:
    """tarfile keeps the header of every file that went by."""
    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, file = member.name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _members(shard: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Headers only, none of which is kept. tarfile takes a broken header for the end: the end mark must follow."""
    end, last = 0, "its beginning"
    try:
        while (member := archive.next()) is not None:
            forget_members(archive)
            end, last = member.offset_data + -(-_stored_bytes(member) // _BLOCK) * _BLOCK, member.name
            yield member
    except tarfile.TarError as error:
        raise UserError(f"{shard}: cut short or broken after {last} ({error}); copy or make it anew") from error
    assert archive.fileobj is not None
    archive.fileobj.seek(end)
    if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(f"{shard}: cut short or broken after {last} (no end mark); copy or make it anew")


def _stored_bytes(member: tarfile.TarInfo) -> int:
    return member.size if member.isreg() else 0


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()
