"""Simple drawings, made with a few strokes, for the gallery's sketches."""

from collections.abc import Callable

from PIL import Image, ImageDraw

SIDE = 256  # pixels
SKY, SEA, ROAD, GRASS = "#9cc9ee", "#2b5f93", "#8a8a8a", "#5d8f43"

Pen = ImageDraw.ImageDraw


def _ship(pen: Pen) -> None:
    pen.rectangle((0, 0, 256, 160), fill=SKY)
    pen.rectangle((0, 160, 256, 256), fill=SEA)
    pen.polygon([(30, 140), (230, 140), (200, 190), (60, 190)], fill="#5b2d20")
    pen.rectangle((80, 100, 170, 140), fill="white")
    pen.rectangle((110, 60, 135, 100), fill="#b33a2e")


def _automobile(pen: Pen) -> None:
    pen.rectangle((0, 175, 256, 256), fill=ROAD)
    pen.polygon([(70, 90), (170, 90), (205, 130), (45, 130)], fill="#31465f")
    pen.rectangle((20, 125, 236, 180), fill="#c22f2a")
    for x in (70, 185):
        pen.ellipse((x - 26, 155, x + 26, 207), fill="#1b1b1b")


def _airplane(pen: Pen) -> None:
    pen.rectangle((0, 0, 256, 256), fill=SKY)
    pen.ellipse((25, 110, 235, 146), fill="#e8e8e8", outline="#555555", width=3)
    pen.polygon([(110, 128), (150, 128), (85, 205)], fill="#b9bec6")
    pen.polygon([(30, 120), (60, 120), (25, 70)], fill="#b33a2e")


def _bird(pen: Pen) -> None:
    pen.rectangle((0, 190, 256, 256), fill=GRASS)
    pen.ellipse((70, 80, 190, 170), fill="#8b6a3f")
    pen.ellipse((160, 50, 215, 105), fill="#8b6a3f")
    pen.polygon([(212, 70), (245, 80), (212, 90)], fill="#e0a92e")
    pen.polygon([(75, 110), (20, 95), (80, 140)], fill="#5e4526")
    for x in (115, 145):
        pen.line((x, 165, x, 205), fill="#e0a92e", width=6)


def _cat(pen: Pen) -> None:
    pen.polygon([(60, 100), (75, 25), (125, 75)], fill="#b5793f")
    pen.polygon([(196, 100), (181, 25), (131, 75)], fill="#b5793f")
    pen.ellipse((48, 55, 208, 215), fill="#b5793f")
    for x in (95, 161):
        pen.ellipse((x - 16, 105, x + 16, 137), fill="#d9e28b")
        pen.ellipse((x - 6, 107, x + 6, 135), fill="black")
    pen.polygon([(116, 152), (140, 152), (128, 168)], fill="#d98383")


def _horse(pen: Pen) -> None:
    pen.rectangle((0, 200, 256, 256), fill=GRASS)
    pen.ellipse((60, 95, 190, 165), fill="#6b3f22")
    pen.polygon([(165, 120), (195, 40), (225, 50), (190, 140)], fill="#6b3f22")
    pen.ellipse((190, 30, 245, 70), fill="#6b3f22")
    for x in (75, 100, 155, 178):
        pen.line((x, 150, x, 225), fill="#4d2c17", width=12)
    pen.line((64, 120, 35, 190), fill="#2b1a0f", width=9)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "ship": _ship,
    "automobile": _automobile,
    "airplane": _airplane,
    "bird": _bird,
    "cat": _cat,
    "horse": _horse,
}


def draw(name: str) -> Image.Image:
    """The drawing of that name, RGBA; where nothing was drawn it is transparent."""
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    DRAWINGS[name](ImageDraw.Draw(image))
    return image
