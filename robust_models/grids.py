"""Pictures of image batches for people to look at."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from robust_models.errors import UserError, about_field
from robust_models.runtime.files import check_place, whole_file

CELL = 96  # pixels per image at least
GAP = 6
CAPTION = 30  # two lines of text
FONT_SIZE = 11
NOTE_LINE = 15  # pixels
FRAME_MS, LAST_FRAME_MS = 400, 1600
MADE_BY = "bigroc"  # stands in every picture, so that none but ours is ever replaced
BACKGROUND, INK, FAINT = "white", "#222222", "#777777"
GREY, MOST = 128, 20  # a larger factor would show rounding as structure

Row = tuple[str, Tensor]  # a name and images x_u8 [N,3,H,W] on the CPU


def save_rows(path: Path, rows: Sequence[Row], captions: Sequence[str], *, columns: int = 8, note: str = "") -> None:
    """One PNG: every row of images under its name, column i of all rows above captions[i], the note below all.

    N images wrap into blocks of `columns`; small images are enlarged by a whole factor so that their pixels stay sharp.
    """
    _save(path, [_with_note(_picture(rows, captions, columns), note)], "png")


def save_trajectory(
    path: Path, frames: Sequence[Tensor], captions: Sequence[str], steps: Sequence[int] | None = None
) -> None:
    """The way of a few images: frames[i] is x_u8 [K,3,H,W] after steps[i] steps (None: i), captions[k] is image k's.

    A PNG with one row per frame; an animation where path ends in .gif.
    """
    numbers = range(len(frames)) if steps is None else steps
    rows = [(f"step {t}", frame) for t, frame in zip(numbers, frames, strict=True)]
    if path.suffix.lower() == ".gif":
        _save(path, [_picture([row], captions, len(row[1])) for row in rows], "gif")
    else:
        save_rows(path, rows, captions, columns=len(frames[0]))


def difference_row(before_u8: Tensor, after_u8: Tensor) -> Row:
    """What changed, x_u8 [N,3,H,W]: after less before around mid-grey, amplified by the whole factor in the row's name.

    The factor makes all but 1 in 200 of the changes fit; it is one for all images, so that they can be compared.
    """
    change = after_u8.short() - before_u8.short()
    strongest = change.abs().flatten().kthvalue(max(1, round(0.995 * change.numel()))).values.item()
    factor = max(1, min(MOST, int(GREY // max(strongest, 1))))
    return f"change x{factor}", (GREY + factor * change).clamp(0, 255).to(torch.uint8)


def fitted(x: Tensor, side: int) -> Tensor:
    """x [1,3,H,W] in [0,1] with white to make it a square, then scaled to [1,3,side,side]; what fits is not touched."""
    height, width = x.shape[-2:]
    if (height, width) == (side, side):
        return x
    across, down = max(height - width, 0), max(width - height, 0)
    square = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2), value=1.0)
    scaled = F.interpolate(square, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return scaled.clamp(0, 1)


def check_picture_out(path: Path | None, field: str) -> None:
    """UserError, to be called before any work, where anything but a picture that this module made stands at `path`."""
    if path is None:
        return
    if not path.exists():
        with about_field(field):
            check_place(path)
        return
    try:
        with Image.open(path) as picture:
            made_by = picture.info.get("Software") or picture.info.get("comment", b"").decode("ascii", "replace")
    except (OSError, ValueError, SyntaxError, AttributeError):
        made_by = ""
    if made_by != MADE_BY:
        raise UserError(f"{field}: {path} exists and is no picture that this program made; name another file")


def _save(path: Path, pictures: Sequence[Image.Image], kind: str) -> None:
    check_picture_out(path, "picture")
    with whole_file(path) as partial:
        if kind == "gif":
            durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
            pictures[0].save(
                partial,
                format=kind,
                save_all=True,
                append_images=pictures[1:],
                duration=durations,
                loop=0,
                comment=MADE_BY,
            )
        else:
            mark = PngInfo()
            mark.add_text("Software", MADE_BY)
            pictures[0].save(partial, format=kind, pnginfo=mark)


def _picture(rows: Sequence[Row], captions: Sequence[str], columns: int) -> Image.Image:
    count, _, height, width = rows[0][1].shape
    factor = max(1, round(CELL / width))
    cell_height, cell_width = height * factor, width * factor
    columns = min(columns, count)
    blocks = -(-count // columns)
    block_height = len(rows) * (cell_height + GAP) + CAPTION + GAP
    font = ImageFont.load_default(FONT_SIZE)
    margin = round(max(font.getlength(name) for name, _ in rows)) + 2 * GAP
    canvas = Image.new("RGB", (margin + columns * (cell_width + GAP), GAP + blocks * block_height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for block in range(blocks):
        top = GAP + block * block_height
        part = slice(block * columns, (block + 1) * columns)
        for r, (name, x_u8) in enumerate(rows):
            y = top + r * (cell_height + GAP)
            draw.text((margin - GAP, y + cell_height / 2), name, INK, font, anchor="rm")
            for c, pixels in enumerate(x_u8[part]):
                image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
                enlarged = image.resize((cell_width, cell_height), Image.Resampling.NEAREST)
                canvas.paste(enlarged, (margin + c * (cell_width + GAP), y))
        y = top + len(rows) * (cell_height + GAP)
        for c, caption in enumerate(captions[part]):
            middle = margin + c * (cell_width + GAP) + cell_width / 2
            draw.text((middle, y), caption, FAINT, font, anchor="ma", align="center")
    return canvas


def _with_note(picture: Image.Image, note: str) -> Image.Image:
    """The picture with a note below it, in lines as long as it is wide."""
    if not note:
        return picture
    font = ImageFont.load_default(FONT_SIZE)
    lines = textwrap.wrap(note, max(20, int((picture.width - 2 * GAP) / font.getlength("n"))))
    canvas = Image.new("RGB", (picture.width, picture.height + len(lines) * NOTE_LINE + GAP), BACKGROUND)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        draw.text((GAP, picture.height + i * NOTE_LINE), line, FAINT, font)
    return canvas
