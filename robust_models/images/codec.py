"""One encoded image (PNG, JPEG, ...) to pixels, and pixels to PNG, 8 or 16 bits deep.

Pillow reduces 16 bits of colour to 8, silently, and writes no more. So such files are noticed by their headers: PNG is
read in two passes of Pillow's decoder and written by the small encoder below; TIFF and PPM are refused in one line.
(torchvision reads them, but its codecs are deprecated; imagecodecs and OpenCV weigh 26 and 61 MB.)
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from robust_models.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_AT, _COLOUR_AT = 24, 25  # bytes of IHDR
_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6  # colour types
_UP = 2  # row filter
_TIFF_BITS_PER_SAMPLE = 258
_BROKEN = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
_BROKEN += (struct.error, zlib.error, EOFError, IndexError, KeyError, TypeError, MemoryError)


def decode(data: bytes, name: str) -> np.ndarray:
    """An encoded image -> [H,W,3], uint8, or uint16 where a PNG has 16 bits. UserError, which begins with `name`.

    Grey becomes RGB (a refined image has colour); alpha is left out here and put back by `encode_png`.
    """
    return _decode(data, name)[..., :3]


def decode_alpha(data: bytes, name: str) -> np.ndarray | None:
    """The alpha channel [H,W] of an encoded image, in its own depth; None where it has none."""
    if _is_deep_png(data):
        transparent = data[_COLOUR_AT] in (_GREY_ALPHA, _RGBA)
    else:
        with Image.open(io.BytesIO(data)) as image:
            transparent = image.has_transparency_data
    return _decode(data, name)[..., 3] if transparent else None


def encode_png(pixels: np.ndarray, alpha: np.ndarray | None = None) -> bytes:
    """[H,W,3] uint8 or uint16, with alpha [H,W] of the same type or without, as a PNG of 8 or 16 bits per channel."""
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    if pixels.dtype == np.uint16:
        return _deep_png(pixels)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return stream.getvalue()


def _decode(data: bytes, name: str) -> np.ndarray:
    """[H,W,3], or [H,W,4] where there is alpha."""
    try:
        with Image.open(io.BytesIO(data)) as image:  # also guards against a header that asks for gigabytes
            if _is_deep_png(data):
                return _with_colour(_read_deep_png(data))
            if _is_deep(image):
                raise UserError(
                    f"{name}: {image.format}, {image.mode}, with more than 8 bits per channel is not read; "
                    "convert it to a 16-bit PNG"
                )
            return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except _BROKEN as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: cannot be decoded ({_told(error)})") from error


def _with_colour(pixels: np.ndarray) -> np.ndarray:
    """Grey, with or without alpha, three times."""
    channels = {1: [0, 0, 0], 2: [0, 0, 0, 1]}.get(pixels.shape[2])
    return pixels if channels is None else pixels[..., channels]


def _told(error: Exception) -> str:
    """Pillow names the stream that we made for it, which says nothing to people."""
    unknown = isinstance(error, UnidentifiedImageError)
    return "not an image of a known format" if unknown else " ".join(str(error).split())


def _is_deep_png(data: bytes) -> bool:
    return data.startswith(_PNG) and len(data) > _COLOUR_AT and data[_BITS_AT] == 16


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """More than 8 bits per channel, in a format other than PNG."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))) > 8  # pyright: ignore[reportAttributeAccessIssue]
    if image.format == "PPM":
        args = image.tile[0][3]
        return isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255  # its maximum
    return False


def _read_deep_png(data: bytes) -> np.ndarray:
    """A 16-bit PNG -> uint16 [H,W,channels]: grey, grey and alpha, RGB, or RGBA.

    Of colours, Pillow's big-endian unpacker keeps the upper bytes; its little-endian one, the lower.
    """
    colour = data[_COLOUR_AT]
    if colour == _GREY:
        return _unpacked(data, "I;16B")[..., None]
    if colour == _GREY_ALPHA:  # as many bytes to a pixel, not interpreted
        return np.ascontiguousarray(_unpacked(data, "RGBA")).view(">u2").astype(np.uint16)
    mode = "RGBA" if colour == _RGBA else "RGB"
    upper, lower = (_unpacked(data, f"{mode};16{order}").astype(np.uint16) for order in "BL")
    return upper << 8 | lower


def _unpacked(data: bytes, raw_mode: str) -> np.ndarray:
    """Pixels of a PNG by an unpacker of our choice."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    image.tile = [(*tile[:3], raw_mode) for tile in image.tile]  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(image)


def _deep_png(pixels: np.ndarray) -> bytes:
    """uint16 [H,W,3 or 4] as PNG (W3C PNG 3rd edition): big-endian samples, each row less the one above, deflated."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]  # modulo 256
    header = struct.pack(">IIBBBBB", width, height, 16, _RGB if channels == 3 else _RGBA, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b""))
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
