"""Pictures of image batches for people to look at."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from robust_models.runtime.files import whole_file

CELL = 96  # pixels per image at least
GAP = 6
CAPTION = 30  # two lines of text
MARGIN = 56  # room for the row names
BACKGROUND, INK, FAINT = "white", "#222222", "#777777"


def save_rows(path: Path, rows: Sequence[tuple[str, Tensor]], captions: Sequence[str], *, columns: int = 8) -> None:
    """One PNG: every row of images x_u8 [N,3,H,W] under its name, column i of all rows above captions[i].

    N images wrap into blocks of `columns`; small images are enlarged by a whole factor so that their pixels stay sharp.
    """
    count, _, height, width = rows[0][1].shape
    factor = max(1, round(CELL / width))
    cell_height, cell_width = height * factor, width * factor
    columns = min(columns, count)
    blocks = -(-count // columns)
    block_height = len(rows) * (cell_height + GAP) + CAPTION + GAP
    canvas = Image.new("RGB", (MARGIN + columns * (cell_width + GAP), GAP + blocks * block_height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(11)
    for block in range(blocks):
        top = GAP + block * block_height
        for r, (name, x_u8) in enumerate(rows):
            y = top + r * (cell_height + GAP)
            draw.text((MARGIN - GAP, y + cell_height / 2), name, INK, font, anchor="rm")
            for c, pixels in enumerate(x_u8[block * columns : (block + 1) * columns]):
                image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
                canvas.paste(
                    image.resize((cell_width, cell_height), Image.Resampling.NEAREST),
                    (MARGIN + c * (cell_width + GAP), y),
                )
        y = top + len(rows) * (cell_height + GAP)
        for c, caption in enumerate(captions[block * columns : (block + 1) * columns]):
            draw.text(
                (MARGIN + c * (cell_width + GAP) + cell_width / 2, y), caption, FAINT, font, anchor="ma", align="center"
            )
    with whole_file(path) as partial:
        canvas.save(partial, format="png")
