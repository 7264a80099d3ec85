"""The samples of one tar shard, as WebDataset groups them: neighbours that share a name up to its first dot."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from robust_models.errors import DECODING_FAILURES, UserError, reason
from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.folder_files import check_regular
from robust_models.images.pixels import max_bytes, too_large

_BLOCK = 512  # bytes
_MAX_DIGITS = 18  # of a class index, which is stored in 64 bits


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
            text = self._content(archive, by_extension["cls"]).strip()
            if not text.isdigit() or len(text) > _MAX_DIGITS:
                raise UserError(f"{self.shard}: {by_extension['cls'].name} holds {text[:20]!r}; expected a class index")
            return int(text)
        if "json" not in by_extension:
            return None
        try:
            found = json.loads(self._content(archive, by_extension["json"]))
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.shard}: {by_extension['json'].name} is not JSON ({reason(error)})") from error
        label = found.get("label") if isinstance(found, dict) else None
        return label if type(label) is int and abs(label) < 10**_MAX_DIGITS else None

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        check_size(self.shard, member)
        stream = archive.extractfile(member)
        assert stream is not None
        return stream.read()


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
    """The shard, to be read forwards. UserError where it is no regular file or no tar."""
    try:
        check_regular(shard)
        archive = tarfile.open(shard, "r:")
    except UserError:
        raise
    except DECODING_FAILURES as error:
        raise UserError(
            f"{shard}: not a readable tar ({reason(error)}); a compressed one must be unpacked first"
        ) from error
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
    end, last, file_bytes = 0, "its beginning", shard.stat().st_size
    try:
        while (member := archive.next()) is not None:
            forget_members(archive)
            _check_place(member, end, file_bytes)
            end, last = member.offset_data + -(-_stored_bytes(member) // _BLOCK) * _BLOCK, member.name
            yield member
    except UserError:
        raise
    except DECODING_FAILURES as error:
        raise UserError(f"{shard}: cut short or broken after {last} ({reason(error)}); copy or make it anew") from error
    assert archive.fileobj is not None
    archive.fileobj.seek(end)
    if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(f"{shard}: cut short or broken after {last} (no end mark); copy or make it anew")


def _check_place(member: tarfile.TarInfo, end: int, file_bytes: int) -> None:
    """ValueError for a header whose file does not lie behind the last one's, in the shard, in one piece."""
    if member.sparse is not None:
        raise ValueError(f"{member.name} is stored as a sparse file, which is not read: pack it without --sparse")
    if member.size < 0 or member.offset_data < end or member.offset_data + _stored_bytes(member) > file_bytes:
        raise ValueError(f"{member.name} with {member.size} bytes does not lie in the file")


def _stored_bytes(member: tarfile.TarInfo) -> int:
    return member.size if member.isreg() else 0


def check_size(shard: Path, member: tarfile.TarInfo) -> None:
    """UserError for a file that must be in memory at once and is larger than max_bytes()."""
    if member.size > max_bytes():
        raise UserError(too_large(f"{shard}: {member.name} is {member.size:,} bytes", member.size))
