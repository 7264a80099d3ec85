"""The pictures of docs/studio.md, taken of the page in chromium: `python docs/studio_pictures.py`."""

import io
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))

from refine.studio.config import StudioConfig
from refine.studio.server import StudioServer

HERE = Path(__file__).parent / "studio"
LAPTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def run(page: Page) -> None:
    """To its end."""
    page.locator("#run").click()
    page.locator("body[data-state=done]").wait_for()


def first_minute(page: Page) -> None:
    run(page)
    page.locator("#wipe").fill("0")


def features(page: Page) -> None:
    page.locator("[name=what][value=feature]").check()
    page.locator("#feature-class").fill("ship")
    page.locator("#feature-class").press("Tab")
    page.locator("#features label").first.wait_for()
    page.locator("#features-hint", has_text="ship").wait_for()
    page.locator("#features label").nth(1).click()
    page.locator("#steps").fill("40")
    run(page)


def generate(page: Page) -> None:
    page.locator("#tab-generate").click()
    page.locator("#pictures button").nth(5).wait_for()
    page.locator("#run-seeds").click()
    page.locator("#pictures button").nth(5).and_(page.locator("[aria-pressed=true]")).wait_for()
    page.locator("body[data-state=done]").wait_for()


def explain(page: Page) -> None:
    page.locator("#tab-translate").click()
    run(page)
    page.locator("#tab-explain").click()
    run(page)
    page.locator("#bars-after").wait_for()


def sketch(page: Page) -> None:
    """A ship on the sea, below the sky."""
    page.locator("#tab-sketch").click()
    page.locator("#class").fill("ship")

    def drag(*points: tuple[float, float]) -> None:
        page.locator("#image").scroll_into_view_if_needed()
        box = page.locator("#image").bounding_box()
        assert box is not None
        for i, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=1 if i == 0 else 12)
            if i == 0:
                page.mouse.down()
        page.mouse.up()

    def take(tool: str, colour: str, size: int) -> None:
        page.locator(f"[name=tool][value={tool}]").check()
        page.locator(f"#palette [aria-label='{colour}']").check()
        page.locator("#brush").fill(str(size))

    take("fill", "sky", 1)
    drag((0.5, 0.2))
    take("brush", "blue", 12)
    drag((0, 0.85), (1, 0.85))
    take("brush", "red", 5)
    drag((0.22, 0.62), (0.78, 0.62))
    take("brush", "white", 4)
    drag((0.4, 0.46), (0.62, 0.46))
    take("line", "black", 2)
    drag((0.5, 0.2), (0.5, 0.42))


def refused(page: Page) -> None:
    page.locator("#class").fill("unicorn")
    page.locator("#run").click()
    page.locator("#problem").wait_for()


PICTURES: dict[str, tuple[Callable[[Page], None], dict[str, int], str]] = {
    "paint": (first_minute, LAPTOP, "light"),
    "features": (features, LAPTOP, "dark"),
    "generate": (generate, LAPTOP, "light"),
    "explain": (explain, LAPTOP, "dark"),
    "phone-paint": (first_minute, PHONE, "light"),
    "phone-sketch": (sketch, PHONE, "dark"),
    "phone-refused": (refused, PHONE, "light"),
}


def save(path: Path, png: bytes) -> None:
    """In 256 colours: a third of the bytes."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as out, StudioServer(StudioConfig(port=0, out=Path(out))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, (act, viewport, scheme) in PICTURES.items():
                settings: dict[str, Any] = {"viewport": viewport, "color_scheme": scheme}
                page = browser.new_page(**settings)
                page.goto(server.url)
                page.locator("#guess", has_text="It sees").wait_for()
                act(page)
                page.mouse.move(0, 0)
                page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                page.wait_for_timeout(300)
                save(HERE / f"{name}.png", page.screenshot(full_page=viewport is LAPTOP))
                page.close()
            browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
