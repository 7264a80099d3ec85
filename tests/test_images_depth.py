"""Eight bits, sixteen bits and floats stay what they are."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from robust_models import UserError, open_images, to_float, write_images
from robust_models.images import from_float
from robust_models.images.codec import decode, decode_alpha, encode

UINT16_IMAGES = arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 4])))


def pixels_by_the_standard(png: bytes) -> np.ndarray:
    """Our encoder's PNG read without Pillow: chunk by chunk, filter "up" undone."""
    position, body = 8, b""
    while position < len(png):
        (length,), kind = struct.unpack(">I", png[position : position + 4]), png[position + 4 : position + 8]
        content = png[position + 8 : position + 8 + length]
        assert struct.unpack(">I", png[position + 8 + length : position + 12 + length])[0] == zlib.crc32(kind + content)
        if kind == b"IHDR":
            width, height, bits, colour, *_ = struct.unpack(">IIBBBBB", content)
        body += content if kind == b"IDAT" else b""
        position += 12 + length
    assert bits == 16
    channels = {2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).view(">u2").reshape(height, width, channels)


def png_by_the_standard(pixels: np.ndarray, colour: int) -> bytes:
    """uint16 [H,W,C] as a PNG whose rows take all five filters in turn, in two IDAT chunks."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1).astype(int)
    step = 2 * channels  # bytes
    body = b""
    for y, row in enumerate(rows):
        up = rows[y - 1] if y else np.zeros_like(row)
        left, up_left = (np.concatenate([np.zeros(step, int), r[:-step]]) for r in (row, up))
        estimate = left + up - up_left
        distances = np.stack([abs(estimate - r) for r in (left, up, up_left)])
        paeth = np.choose(distances.argmin(0), [left, up, up_left])
        predicted = [0, left, up, (left + up) // 2, paeth][y % 5]
        body += bytes([y % 5]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
    packed = zlib.compress(body)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed[:20]), (b"IDAT", packed[20:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(("depth", "levels"), [("uint8", 256), ("uint16", 65536)])
def test_every_level_survives_the_trip_through_float(depth, levels):
    x = torch.arange(levels, dtype=torch.int32).to(getattr(torch, depth))
    assert torch.equal(from_float(to_float(x), depth), x)


def test_floats_pass_and_are_clipped():
    x = torch.tensor([-0.5, 0.25, 1.5])
    assert to_float(x) is x
    assert from_float(x, "float32").tolist() == [0, 0.25, 1]
    assert from_float(torch.tensor([0.5 / 65535, 1.5 / 65535, 2], dtype=torch.float64), "uint16").tolist() == [
        0,
        2,
        65535,
    ]


@given(UINT16_IMAGES)
def test_a_16_bit_png_is_read_back_exactly(pixels):
    rgb, alpha = pixels[..., :3], pixels[..., 3] if pixels.shape[2] == 4 else None
    png = encode(rgb, alpha)
    assert np.array_equal(pixels_by_the_standard(png), pixels)
    assert np.array_equal(decode(png, "x"), rgb)
    read_alpha = decode_alpha(png, "x")
    assert (read_alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(read_alpha, alpha)
    with Image.open(io.BytesIO(png)) as image:  # any reader takes it, if only its upper bytes
        assert np.array_equal(np.asarray(image)[..., :3], rgb >> 8)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_any_16_bit_png_is_decoded_exactly(colour, channels):
    pixels = np.random.default_rng(colour).integers(0, 65536, (11, 7, channels)).astype(np.uint16)
    png = png_by_the_standard(pixels, colour)
    expected = pixels[..., :3] if channels > 2 else pixels[..., [0, 0, 0]]
    assert np.array_equal(decode(png, "x"), expected)
    assert decode(png, "x").dtype == np.uint16
    alpha = decode_alpha(png, "x")
    assert (alpha is not None) == (channels in (2, 4))
    assert alpha is None or np.array_equal(alpha, pixels[..., -1])
    with pytest.raises(UserError, match=r"x: cannot be decoded"):
        decode(png[: len(png) // 2], "x")


def test_a_folder_of_16_bit_png_stays_16_bit_with_its_alpha(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 5, 6, 4)).astype(np.uint16)
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(encode(pixels[0, ..., :3], pixels[0, ..., 3]))
    (source / "b.png").write_bytes(encode(pixels[1, ..., :3]))
    Image.fromarray(pixels[2, ..., 0]).save(source / "grey.png")
    images = open_images(source)
    assert images.depth == "uint16"
    expected = pixels[..., :3].copy()
    expected[2] = pixels[2, ..., :1]
    assert np.array_equal(images.read(0, 3).numpy(), expected.transpose(0, 3, 1, 2))
    with write_images(tmp_path / "out", like=images) as add:
        add(images.read(0, 3))
    assert torch.equal(open_images(tmp_path / "out").read(0, 3), images.read(0, 3))
    assert np.array_equal(decode_alpha((tmp_path / "out" / "a.png").read_bytes(), "a"), pixels[0, ..., 3])
    with write_images(tmp_path / "out.npz", like=images) as add:
        add(images.read(0, 3))
    with np.load(tmp_path / "out.npz") as written:
        assert written["arr_0"].dtype == np.uint16
        assert np.array_equal(written["arr_0"], expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, r"values run from -1 to 1; expected floats in \[0,1\]: store \(x \+ 1\) / 2"),
        (255.0, r"values run from 0.5 to 255; expected floats in \[0,1\]: store x / 255"),
        (-9.0, r"values run from -9 to 1; .*: rescale or clip them"),
        (np.inf, r"values run from 0.5 to inf; .*: rescale or clip them"),
        (np.nan, r"image 2 holds NaN; pixels must be numbers in \[0,1\]"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_floats_outside_the_unit_interval_are_told(tmp_path, suffix, value, message):
    pixels = np.full((4, 5, 6, 3), 0.5, np.float32)
    pixels[1, 0, 0, 0] = 1
    pixels[2, 1, 2, 0] = value
    file = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save(torch.from_numpy(pixels), file)
    else:
        np.save(file, pixels) if suffix == "npy" else np.savez(file, pixels)
    with pytest.raises(UserError, match=message):
        open_images(file)
