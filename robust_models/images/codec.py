"""One encoded image (PNG, JPEG, ...) to upright pixels, and pixels to an image file.

Pillow reduces 16 bits of colour to 8, silently, and writes no more. So such files are noticed by their headers: PNG is
read in two passes of Pillow's decoder and written by the small encoder below; TIFF and PPM are refused in one line.
(torchvision reads them, but its codecs are deprecated; imagecodecs and OpenCV weigh 26 and 61 MB.)
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from robust_models.errors import DECODING_FAILURES, UserError, reason
from robust_models.images.pixels import check_pixels

# Single images, read and written without help from other programs: no EPS, which would start Ghostscript.
_FORMATS = {
    "BMP": (".bmp",),
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (),  # a JPEG with further pictures behind the first, as telephones make them
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
LISTED_SUFFIXES = ", ".join(suffix for suffixes in _FORMATS.values() for suffix in suffixes)  # for messages
WRITTEN_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pnm",
)  # fmt: skip
LOSSY_SUFFIXES = _FORMATS["JPEG"]  # of those

_OPTIONS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact: the colour of transparent pixels too
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_AT, _COLOUR_AT = 24, 25  # bytes of IHDR
_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6  # colour types
_UP = 2  # row filter
_LONGEST_SIDE = dict.fromkeys(_FORMATS["JPEG"], 65500) | {".webp": 16383}  # pixels
_TIFF_BITS_PER_SAMPLE = 258
_ORIENTATION = ExifTags.Base.Orientation
_LARGE = 1 << 22  # pixels; larger images are decoded one at a time, whatever the number of threads
_ONE_LARGE = Lock()
_BROKEN = (*DECODING_FAILURES, Image.DecompressionBombError)


def decode(data: bytes, name: str) -> np.ndarray:
    """An encoded image -> [H,W,3], upright, uint8, or uint16 where a PNG has 16 bits. UserError, beginning with `name`.

    Grey becomes RGB (a refined image has colour); alpha is left out here and put back by `encode`. An image of more
    than max_pixels() is refused by its header, an animation because its frames would be lost.
    """
    return _decode(data, name)[..., :3]


def decode_alpha(data: bytes, name: str) -> np.ndarray | None:
    """The alpha channel [H,W] of an encoded image, upright, in its own depth; None where it has none. UserError."""
    with _failures_named(name):
        if _is_deep_png(data):
            transparent = data[_COLOUR_AT] in (_GREY_ALPHA, _RGBA)
        else:
            with _opened(data) as image:
                transparent = image.has_transparency_data
    return _decode(data, name)[..., 3] if transparent else None


def encode(pixels: np.ndarray, alpha: np.ndarray | None = None, suffix: str = ".png") -> bytes:
    """[H,W,3] uint8 or (PNG alone) uint16, with alpha [H,W] of the same type or without, as an image file.

    suffix is one of WRITTEN_SUFFIXES. All are without loss but JPEG, whose quality is 95 with full colour resolution.
    """
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    if pixels.dtype == np.uint16:
        return _deep_png(pixels)
    kind = next(kind for kind, suffixes in _FORMATS.items() if suffix in suffixes)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, kind, **_OPTIONS.get(kind, {}))
    return stream.getvalue()


def can_hold(suffix: str, size: tuple[int, int], *, deep: bool, alpha: bool) -> bool:
    """Whether an image file with this suffix, one of WRITTEN_SUFFIXES, can hold so many pixels, 16 bits, and alpha."""
    if deep or (alpha and suffix not in (".webp", ".tif", ".tiff")):
        return suffix == ".png"
    return max(size) <= _LONGEST_SIDE.get(suffix, max(size))


@contextmanager
def _failures_named(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        # Of a file that it does not know, Pillow would only name the stream that we made for it.
        unknown = isinstance(error, UnidentifiedImageError)
        why = "not an image of a known format" if unknown else reason(error)
        raise UserError(f"{name}: cannot be decoded ({why})") from error


def _decode(data: bytes, name: str) -> np.ndarray:
    """[H,W,3], or [H,W,4] where there is alpha."""
    with _failures_named(name), _opened(data) as image:
        width, height = image.size
        check_pixels(height, width, source=name)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise UserError(f"{name}: {image.format} of several frames; save each frame as an image of its own")
        with _ONE_LARGE if height * width > _LARGE else nullcontext():
            if _is_deep_png(data):
                pixels = _with_colour(_read_deep_png(data))
            elif _is_deep(image):
                raise UserError(
                    f"{name}: {image.format}, {image.mode}, with more than 8 bits per channel is not read; "
                    "convert it to a 16-bit PNG"
                )
            else:
                pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        return _upright(pixels, _orientation(image))


def _opened(data: bytes) -> ImageFile.ImageFile:
    """The image with its header read, as Image.open does, but for our formats only and with our limit of pixels."""
    Image.init()
    for kind in _FORMATS:
        factory, accepts = Image.OPEN.get(kind, (None, None))  # AVIF is not in every build of Pillow
        if factory is not None and accepts is not None and accepts(data[:16]) is True:
            try:
                return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error):
                continue
    raise UnidentifiedImageError


def _orientation(image: Image.Image) -> int:
    """How the camera was held (EXIF 2.32, table 6); 1 is upright, and the default."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H,W,C] as stored -> upright; orientation as in EXIF, values other than 2 to 8 count as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _with_colour(pixels: np.ndarray) -> np.ndarray:
    """Grey, with or without alpha, three times."""
    channels = {1: [0, 0, 0], 2: [0, 0, 0, 1]}.get(pixels.shape[2])
    return pixels if channels is None else pixels[..., channels]


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
