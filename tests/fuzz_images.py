"""Fuzzing of the image readers: seeds of every kind of file, changed at random, opened, read and written back.

    python -m tests.fuzz_images SECONDS [FOUND]

A finding is anything but images or one UserError of one line: another exception, more than 10 s, more memory than the
limit, a file outside the output. FOUND takes the inputs; those worth keeping are in tests/fuzz_images_corpus, which
tests/test_images_fuzz.py reads again. An input's name ends as the file that it stands for (x.tar, x.png in a folder).
"""

import io
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MAX_SECONDS, MAX_GROWTH_MB = 10, 1000
LIMITS = {"BIGROC_MAX_PIXELS": str(1 << 22), "BIGROC_MAX_BYTES": str(1 << 24)}
WORDS = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"9" * 30, b"-1", b"\n", b"(", b"[" * 2000]


def seeds() -> Iterator[tuple[str, bytes]]:
    """A small whole file of every kind: its suffix and content."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, suffix in {
        "PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm", "GIF": ".gif",
        "JPEG2000": ".jp2", "AVIF": ".avif",
    }.items():  # fmt: skip
        stream = io.BytesIO()
        options = {"exif": exif} if suffix in (".png", ".jpg", ".webp", ".tif") else {}
        Image.fromarray(pixels[0]).save(stream, kind, **options)
        yield suffix, stream.getvalue()
    for mode in ("RGBA", "L", "P", "LA", "1", "I;16"):
        stream = io.BytesIO()
        Image.new(mode, (8, 8)).save(stream, "PNG")
        yield ".png", stream.getvalue()
    png = io.BytesIO()
    Image.fromarray(pixels[0]).save(png, "PNG")
    yield from _arrays(pixels)
    yield from _archives(png.getvalue())


def _arrays(pixels: np.ndarray) -> Iterator[tuple[str, bytes]]:
    for array in (pixels, pixels[..., 0], pixels.astype(np.float32) / 255, pixels.transpose(0, 3, 1, 2).copy()):
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, arr_0=array, arr_1=np.arange(3), class_names=["a", "b", "c"])
            yield ".npz", stream.getvalue()
        stream = io.BytesIO()
        np.save(stream, array)
        yield ".npy", stream.getvalue()
        stream = io.BytesIO()
        torch.save({"images": torch.from_numpy(array), "labels": torch.arange(3)}, stream)
        yield ".pt", stream.getvalue()


def _archives(png: bytes) -> Iterator[tuple[str, bytes]]:
    import tarfile

    for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=style) as archive:
            for i in range(3):
                for name, content in (("png", png), ("json", json.dumps({"label": i}).encode()), ("cls", b"%d" % i)):
                    info = tarfile.TarInfo(f"{'long/' * 30 if i == 2 else ''}{i}.{name}")
                    info.size, info.pax_headers = len(content), {"comment": "x"}
                    archive.addfile(info, io.BytesIO(content))
        yield ".tar", stream.getvalue()
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return
    label = {"_type": "ClassLabel", "names": ["a", "b"]}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    for compression in ("none", "snappy", "zstd"):
        for image in (pa.array([png] * 2), pa.array([{"bytes": png, "path": "a.png"}] * 2)):
            stream = io.BytesIO()
            table = pa.table({"image": image, "label": [0, 1]}).replace_schema_metadata(
                {"huggingface": json.dumps(features)}
            )
            parquet.write_table(table, stream, compression=compression)
            yield ".parquet", stream.getvalue()


def changed(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Some bytes of `content` set, cut, repeated, or replaced by words that readers stumble over."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) or 1)
        end = min(len(data), at + rng.choice((1, 4, 8, 64)))
        match rng.randrange(7):
            case 0:
                data[at:end] = bytes([rng.randrange(256)])
            case 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2:
                word = rng.choice(WORDS)
                data[at : at + len(word)] = word
            case 3:
                data[at:at] = rng.choice(WORDS)
            case 4:
                del data[at : end if rng.random() < 0.9 else len(data)]
            case 5:
                data[at:at] = data[at:end] * rng.choice((1, 3, 100))
            case _:
                data[at:end] = other[at:end]
    return bytes(data)


def repacked(content: bytes, rng: random.Random) -> bytes:
    """A zip whose entries are changed but whose checksums are right, so that what lies in it is reached."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            target.writestr(info, changed(data, rng, data[::-1]) if rng.random() < 0.5 else data)
    return stream.getvalue()


def check(suffix: str, content: bytes, folder: Path) -> str | None:
    """Opens a file of that content, alone and (images) in a folder, reads and writes it; its message or None.

    AssertionError for a message that is not one line, for a file that appeared elsewhere, for too much memory.
    """
    path, out = folder / "in" / f"x{suffix}", folder / "out"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    before = peak_mb()
    try:
        return _read_and_written(path, out, folder, before)
    finally:
        path.unlink()


def _read_and_written(path: Path, out: Path, folder: Path, before: float) -> str | None:
    from robust_models import UserError, write_images
    from robust_models.images import open_image_groups

    message = None
    for source in (path, path.parent):
        try:
            groups = open_image_groups(source)
            for images in groups.sets:
                assert images.labels is None or len(images.labels) == len(images)
                to = out / (path.name if images.in_one_file and images.holds(path.suffix) else "x.npz")
                with write_images(to, like=images, labels=images.labels, class_names=images.class_names) as add:
                    for _, x in images.batches(64):
                        assert x.shape[1:] == (3, *images.size)
                        add(x)
        except UserError as error:
            message = str(error)
            assert message.isprintable(), f"not one line: {message!r}"
            assert len(message) < 3000, f"{len(message)} characters"
    here = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    assert all(re.fullmatch(r"(in|out)/x(\.\w+)?", file) for file in here), f"files appeared: {here}"
    assert peak_mb() - before < MAX_GROWTH_MB, f"{peak_mb() - before:.0f} MB of memory"
    return message


def peak_mb() -> float:
    """Memory of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    seconds = float(sys.argv[1])
    found = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    found.mkdir(exist_ok=True)
    os.environ.update(LIMITS)
    known = list(seeds())
    rng, start, kinds, tried, refused = random.Random(time.time_ns()), time.monotonic(), set[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - start < seconds:
            suffix, content = rng.choice(known)
            _, other = rng.choice(known)
            zipped = suffix in (".npz", ".pt") and rng.random() < 0.7
            data = repacked(content, rng) if zipped else changed(content, rng, other)
            (found / "last").write_bytes(data)
            began = time.monotonic()
            tried += 1
            try:
                refused += check(suffix, data, Path(folder)) is not None
                took = time.monotonic() - began
                assert took < MAX_SECONDS, f"{took:.0f} s"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                place = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip().splitlines()[:1]
                kind = f"{type(error).__name__} {str(error)[:80]} {place}"
                if kind not in kinds:
                    kinds.add(kind)
                    (found / f"{len(kinds):03d}{suffix}").write_bytes(data)
                    print(f"{len(kinds):03d}{suffix}: {kind}", flush=True)
    print(f"{tried:,} inputs in {seconds:.0f} s, {refused:,} refused, {len(kinds)} findings")


if __name__ == "__main__":
    main()
