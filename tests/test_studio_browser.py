"""The studio in a real browser: the first minute, a hand's tools, keys alone, what it looks like, and what goes wrong.

Needs chromium: the system's, that of the variable BIGROC_CHROMIUM, or what `playwright install chromium` brings.
"""

import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refine.studio.config import StudioConfig
from refine.studio.server import StudioServer
from tests.studio import served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = playwright.expect
expect.set_options(timeout=30_000)
pytestmark = pytest.mark.browser
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TIMES = "\N{MULTIPLICATION SIGN}"
TABS = ("refine", "paint", "inpaint", "sketch", "translate", "superres", "generate", "explain")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("BIGROC_CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(
                f"no chromium: {str(error).splitlines()[0]}; apt install chromium, or playwright install chromium"
            )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[StudioServer]:
    with served(StudioConfig(port=0, out=tmp_path_factory.mktemp("saved"))) as running:
        yield running


class Visit:
    """A page that was opened, and everything that should not have happened on it."""

    def __init__(self, browser: Any, url: str, **settings: Any) -> None:
        self.url, self.wrong = url, []
        self.context = browser.new_context(**{"viewport": LAPTOP, "reduced_motion": "reduce"} | settings)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("request", lambda request: self._check(request.url))
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(e.violatedDirective, e.blockedURI))"
        )

    def _check(self, url: str) -> None:
        if not url.startswith((self.url, "blob:")):
            self.wrong.append(f"asks {url}")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith("Canvas2D"):  # that is about `pixels` below
            self.wrong.append(text)

    def open(self) -> Any:
        self.page.goto(self.url)
        self.state("idle")
        expect(self.page.locator("#guess")).to_contain_text("It sees")
        return self.page

    def state(self, name: str) -> None:
        self.page.locator(f"body[data-state={name}]").wait_for()

    def tab(self, name: str) -> None:
        self.page.locator(f"#tab-{name}").click()
        expect(self.page.locator(f"#tab-{name}")).to_have_attribute("aria-selected", "true")

    def run(self) -> None:
        self.page.locator("#run").click()
        self.state("done")

    @property
    def step(self) -> int:
        return int(self.page.locator("body").get_attribute("data-step") or -1)

    @property
    def painted(self) -> int:
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return int(self.page.locator("body").get_attribute("data-painted") or -1)

    def pixels(self, canvas: str = "#image") -> np.ndarray:
        """What the canvas shows; a test may read it back, as chromium adds no noise."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        script = """(id) => { const c = document.querySelector(id);
            return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"""
        height, width, levels = self.page.evaluate(script, canvas)
        return np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The mouse, pressed, from one place on the image to another; both as shares of its sides."""
        box = self.page.locator("#image").bounding_box()
        (x0, y0), (x1, y1) = (
            (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)
        )  # fmt: skip
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1, steps=6)
        self.page.mouse.up()

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(chromium, server) -> Iterator[Visit]:
    """A laptop's visit; nothing wrong may have happened by its end."""
    visit = Visit(chromium, server.url)
    visit.open()
    yield visit
    visit.close()
    assert visit.wrong == []


def picture(size: tuple[int, int] = (48, 40), colour: tuple[int, int, int] = (10, 200, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


# ----------------------------------------------------------------------------------------------------- the first minute


def test_the_first_minute(visit, server):
    """A picture, a mask and a class are there; Enter runs 20 steps; wipe, scrub and the original; saved."""
    page = visit.page
    assert visit.painted > 100
    assert page.locator("#class").input_value() == "dog"
    before = visit.pixels()
    page.keyboard.press("Enter")
    visit.state("done")
    assert visit.step == 20
    assert page.locator("body").get_attribute("data-frames") == "21"
    expect(page.locator("#status")).to_contain_text("20 steps towards dog")
    after = visit.pixels()
    assert (before != after).any()
    for way, step in (("ArrowLeft", 19), ("ArrowLeft", 18), ("ArrowRight", 19)):
        page.keyboard.press(way)
        expect(page.locator("body")).to_have_attribute("data-step", str(step))
    page.keyboard.down(" ")
    assert (visit.pixels() == before).all()
    page.keyboard.up(" ")
    assert (visit.pixels() != before).any()
    page.locator("#wipe").fill("50")
    half = visit.pixels()
    assert (half[:, :16] == before[:, :16]).all()
    assert (half[:, 16:] != before[:, 16:]).any()
    page.keyboard.press("Control+s")
    expect(page.locator("#saved")).to_contain_text("Saved in")
    folder = Path(page.locator("#saved").text_content().removeprefix("Saved in "))
    assert folder.parent == server.config.out
    page.locator("#wipe").fill("0")
    assert (np.asarray(Image.open(folder / "result.png")) == visit.pixels()).all()
    assert page.locator("#command").input_value() == (folder / "command.sh").read_text().splitlines()[-1]
    assert "--steps 19" in page.locator("#command").input_value()
    confidence = float(page.locator("#confidence").text_content().removesuffix(" %"))
    assert confidence > 50


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_runs_and_saves(visit, tab):
    page = visit.page
    visit.tab(tab)
    if tab == "sketch":
        visit.drag((0.2, 0.6), (0.8, 0.6))
    if tab == "generate":
        expect(page.locator("#pictures button")).to_have_count(6)
    visit.run()
    if tab not in ("explain",):
        assert visit.step == int(page.locator("#steps").input_value())
    page.locator("#save").click()
    expect(page.locator("#saved")).to_contain_text(f"-{tab}")
    expect(page.locator("#problem")).to_be_hidden()
    assert f"--task {tab}" in page.locator("#command").input_value() or tab == "refine"


def test_explain_shows_classes_before_and_after(visit):
    page = visit.page
    visit.tab("translate")
    visit.run()
    visit.tab("explain")
    visit.run()
    rows = page.locator("#bars tbody tr")
    expect(rows).to_have_count(10)
    before, after = (
        {row.locator("td").first.text_content(): row.locator("td").nth(k).text_content() for row in rows.all()}
        for k in (1, 2)
    )
    assert float(after["dog"].split()[0]) > 90 > 10 > float(before["dog"].split()[0])


def test_features_are_found_by_class_and_painted(visit):
    page = visit.page
    page.locator("[name=what][value=feature]").check()
    choices = page.locator("#features label")
    expect(choices).to_have_count(24)
    first = choices.first.text_content()
    page.locator("#feature-class").fill("ship")
    page.locator("#feature-class").press("Tab")
    expect(page.locator("#features-hint")).to_contain_text("go best with ship")
    assert choices.first.text_content() != first
    assert "ship" in choices.first.text_content()
    assert len(np.unique(visit.pixels("#features canvas"))) > 50  # thumbnails are there
    choices.first.click()
    number = page.locator("#feature").input_value()
    visit.run()
    page.locator("#save").click()
    expect(page.locator("#saved")).to_contain_text("-paint")
    assert f"--feature {number}" in page.locator("#command").input_value()


def test_seeds_are_drawn_anew_and_kept_as_an_image(visit):
    page = visit.page
    visit.tab("generate")
    expect(page.locator("#pictures button").first).to_contain_text("seed 0")
    page.locator("#image").focus()
    page.keyboard.press("r")
    expect(page.locator("#pictures button").first).to_contain_text("seed 6")
    page.locator("#pictures button").nth(1).click()
    visit.run()
    made = visit.pixels()
    page.locator("#use").click()
    expect(page.locator("#tab-refine")).to_have_attribute("aria-selected", "true")
    assert (visit.pixels() == made).all()


def test_enter_in_the_class_of_generate_runs_that_class(visit):
    page = visit.page
    visit.tab("generate")
    expect(page.locator("#pictures button")).to_have_count(6)
    page.locator("#class").fill("ship")
    page.locator("#class").press("Enter")
    visit.state("done")
    expect(page.locator("#status")).to_contain_text("steps towards ship")
    page.keyboard.press("Control+s")
    expect(page.locator("#command")).to_have_value(re.compile("--classes ship"))


def test_results_of_an_image_that_has_changed_are_not_shown(visit):
    page = visit.page
    visit.tab("refine")
    visit.run()
    visit.tab("paint")
    visit.run()
    page.locator("#keep").click()
    expect(page.locator("body")).to_have_attribute("data-frames", "0")
    visit.tab("refine")
    expect(page.locator("body")).to_have_attribute("data-frames", "0")


def test_images_side_by_side_are_all_run(visit):
    page = visit.page
    visit.tab("refine")
    files = [
        {"name": f"{i}.png", "mimeType": "image/png", "buffer": picture(colour=(40 * i, 90, 120))} for i in range(2)
    ]
    page.locator("#file").set_input_files(files)
    expect(page.locator("#pictures button")).to_have_count(3)
    page.locator("#run-all").click()
    expect(page.locator("#pictures button").nth(2)).to_have_attribute("aria-pressed", "true")
    for i in range(3):
        page.locator("#pictures button").nth(i).click()
        expect(page.locator("body")).to_have_attribute("data-step", "20")


# ------------------------------------------------------------------------------------------------------ a hand's tools


def test_strokes_and_kept_results_are_undone_and_done_again(visit):
    page = visit.page
    page.locator("#mask-clear").click()
    assert visit.painted == 0
    visit.drag((0.2, 0.2), (0.6, 0.2))
    first = visit.painted
    visit.drag((0.2, 0.7), (0.6, 0.7))
    second = visit.painted
    assert second > first > 8
    page.keyboard.press("Control+z")
    assert visit.painted == first
    page.keyboard.press("Control+Shift+z")
    assert visit.painted == second
    visit.run()
    assert visit.painted == second  # a mask survives its runs
    before, after = None, visit.pixels()
    page.locator("#keep").click()
    assert (visit.pixels() == after).all()
    page.locator("#undo").click()
    before = visit.pixels()
    assert (before != after).any()
    page.locator("#redo").click()
    assert (visit.pixels() == after).all()


def test_brush_eraser_and_size(visit):
    page = visit.page
    page.locator("#mask-clear").click()
    page.locator("#image").focus()
    for _ in range(5):
        page.keyboard.press("[")
    expect(page.locator("#brush-value")).to_have_text("3 px")
    page.keyboard.press("]")
    expect(page.locator("#brush-value")).to_have_text("4 px")
    visit.drag((0.2, 0.5), (0.8, 0.5))
    thin = visit.painted
    assert thin > 0
    page.keyboard.press("x")
    expect(page.locator("[name=tool][value=eraser]")).to_be_checked()
    visit.drag((0.5, 0.4), (0.5, 0.6))
    assert 0 < visit.painted < thin


def test_a_mask_is_saved_and_loaded(visit, tmp_path):
    page = visit.page
    painted = visit.painted
    with page.expect_download() as download:
        page.locator("#mask-save").click()
    download.value.save_as(tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png").convert("L"))
    assert {*np.unique(mask)} == {0, 255}
    assert (mask > 0).sum() == painted
    page.locator("#mask-invert").click()
    assert visit.painted == 32 * 32 - painted
    page.locator("#mask-file").set_input_files(tmp_path / "mask.png")
    expect(page.locator("body")).to_have_attribute("data-painted", str(painted))
    page.locator("#mask-file").set_input_files({"name": "m.png", "mimeType": "image/png", "buffer": picture((8, 8))})
    expect(page.locator("#problem")).to_have_text("mask: m.png is 8x8, the image is 32x32; they must be equal")


def test_a_sketch_is_drawn_with_every_tool(visit):
    page = visit.page
    visit.tab("sketch")
    for tool, colour, start, end in (
        ("brush", "red", (0.2, 0.2), (0.8, 0.2)),
        ("line", "blue", (0.2, 0.8), (0.8, 0.8)),
        ("eraser", "red", (0.5, 0.1), (0.5, 0.3)),
        ("fill", "sky", (0.1, 0.5), (0.1, 0.5)),
    ):
        page.locator("#tools label", has_text=tool.capitalize()).click()
        page.locator(f"#palette [aria-label='{colour}']").check()
        visit.drag(start, end)
    found = visit.pixels()
    assert found[16, 3].tolist() == [0x8E, 0xC5, 0xF0]
    assert found[6, 8].tolist() == [0xD0, 0x20, 0x2A]
    assert found[25, 16].tolist() == [0x1A, 0x5F, 0xB4]
    for _ in range(4):
        page.keyboard.press("Control+z")
    assert (visit.pixels() == 255).all()


def test_fingers_and_pens_paint(chromium, server):
    visit = Visit(chromium, server.url, viewport=PHONE, has_touch=True, is_mobile=True)
    page = visit.open()
    page.locator("#mask-clear").tap()
    page.locator("#image").scroll_into_view_if_needed()
    box = page.locator("#image").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    by_finger = visit.painted
    assert by_finger > 20
    script = """(image) => { const box = image.getBoundingClientRect();
        const at = (kind, x, y) => image.dispatchEvent(new PointerEvent(kind, { pointerType: "pen", pointerId: 1,
            isPrimary: true, bubbles: true, cancelable: true,
            clientX: box.x + x * box.width, clientY: box.y + y * box.height }));
        image.setPointerCapture = () => {};
        at("pointerdown", 0.1, 0.1); at("pointermove", 0.4, 0.1); at("pointerup", 0.4, 0.1); }"""
    page.locator("#image").evaluate(script)
    assert visit.painted > by_finger
    visit.close()
    assert visit.wrong == []


def test_zoom_is_by_whole_pixels(visit):
    page = visit.page
    for _ in range(2):
        page.locator("#zoom-in").click()
        width = page.locator("#image").bounding_box()["width"]
        assert width % 32 == pytest.approx(0, abs=0.01)
        assert page.locator("#image").evaluate("(c) => getComputedStyle(c).imageRendering") == "pixelated"
    page.locator("#zoom-fit").click()
    assert page.locator("#image").bounding_box()["width"] <= page.locator("#stage").bounding_box()["width"]


# ------------------------------------------------------------------------------------------------- stop, and run again


def slowed(server: StudioServer, monkeypatch, seconds: float) -> None:
    inner = server.network.model.forward
    monkeypatch.setattr(server.network.model, "forward", lambda x: (time.sleep(seconds), inner(x))[1])


def test_escape_stops_within_a_step_and_it_runs_again(visit, server, monkeypatch):
    page = visit.page
    with monkeypatch.context() as patch:
        slowed(server, patch, 0.15)
        page.keyboard.press("Enter")
        visit.state("running")
        expect(page.locator("#status")).to_contain_text("a step ·")
        expect(page.locator("#status")).to_contain_text("left")
        page.keyboard.press("Escape")
        visit.state("stopped")
        taken = server.worker.steps
        time.sleep(0.6)
        assert server.worker.steps - taken <= 1
        assert 0 < visit.step < 20
    page.keyboard.press("Enter")
    visit.state("done")
    assert visit.step == 20


def test_a_run_that_says_it_is_done_shows_its_last_frame(visit):
    """However late the browser draws: in the background it does not draw at all."""
    page = visit.page
    page.evaluate("window.requestAnimationFrame = () => 0")
    page.keyboard.press("Enter")
    visit.state("done")
    assert visit.step == 20
    expect(page.locator("#status")).to_contain_text("20 steps towards dog")
    expect(page.locator("#run")).to_be_enabled()


def test_closing_the_page_stops_the_run(chromium, server, monkeypatch):
    visit = Visit(chromium, server.url)
    page = visit.open()
    slowed(server, monkeypatch, 0.15)
    page.keyboard.press("Enter")
    visit.state("running")
    visit.close()
    time.sleep(0.3)
    taken = server.worker.steps
    time.sleep(0.6)
    assert server.worker.steps == taken


def test_the_second_of_two_pages_waits_its_turn(visit, chromium, server, monkeypatch):
    other = Visit(chromium, server.url)
    other.open()
    slowed(server, monkeypatch, 0.15)
    visit.page.keyboard.press("Enter")
    visit.state("running")
    other.page.keyboard.press("Enter")
    expect(other.page.locator("#status")).to_have_text("1 before you")
    visit.page.keyboard.press("Escape")
    other.state("running")
    other.close()
    assert other.wrong == []


# ------------------------------------------------------------------------------------------------------- own pictures


DROP = """({ name, bytes, type }) => { const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type }));
    document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data })); }"""
PASTE = DROP.replace('DragEvent("drop"', 'ClipboardEvent("paste"').replace("dataTransfer: data", "clipboardData: data")


@pytest.mark.parametrize("script", [DROP, PASTE], ids=["drop", "paste"])
def test_a_file_is_dropped_or_pasted(visit, script):
    page = visit.page
    page.evaluate(script, {"name": "green.png", "bytes": [*picture()], "type": "image/png"})
    expect(page.locator("#pictures button")).to_have_count(2)
    expect(page.locator("#caption")).to_contain_text(f"was 48 {TIMES} 40, its middle, made smaller")
    expect(page.locator("#caption")).to_contain_text(f"the classifier sees 32 {TIMES} 32")
    assert (visit.pixels() == [10, 200, 30]).all()
    page.locator("#size").select_option("64")
    expect(page.locator("#caption")).to_contain_text(f"48 {TIMES} 40 px")
    visit.tab("refine")
    visit.run()
    assert visit.pixels().shape == (40, 48, 3)


def test_a_large_photograph_is_made_smaller_and_says_so(visit):
    page = visit.page
    page.locator("#size").select_option("512")
    page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": picture((1600, 1200))})
    expect(page.locator("#caption")).to_contain_text(f"512 {TIMES} 384 px (was 1600 {TIMES} 1200, made smaller)")
    page.locator("#tab-refine").click()
    page.locator("#steps").fill("2")
    visit.run()
    assert visit.pixels().shape == (384, 512, 3)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", b"hello", "notes.txt: cannot be decoded (not an image of a known format)"),
        ("cut.png", picture()[:60], "cut.png: cannot be decoded"),
    ],
)
def test_what_is_no_image_is_said(visit, name, content, reason):
    page = visit.page
    page.evaluate(DROP, {"name": name, "bytes": [*content], "type": ""})
    expect(page.locator("#problem")).to_contain_text(reason)
    expect(page.locator("#pictures button")).to_have_count(1)
    visit.wrong = [text for text in visit.wrong if "400 (Bad Request)" not in text]  # the browser's own line about it


@pytest.mark.parametrize(
    ("control", "value", "reason"),
    [
        ("class", "unicorn", "class: unicorn is none of the classifier's 10 classes"),
        ("steps", "501", "steps: 501 is above 500"),
        ("steps", "2.5", "steps: 2.5 is no whole number"),
        ("eps", "-1", "eps: input should be greater than or equal to 0"),
        ("fidelity", "-3", "fidelity: input should be greater than or equal to 0"),
    ],
)
def test_an_error_names_its_control_and_goes_there(visit, control, value, reason):
    page = visit.page
    page.locator(f"#{control}").fill(value)
    page.locator(f"#{control}").press("Enter")
    expect(page.locator("#problem")).to_contain_text(reason)
    expect(page.locator(f"#{control}")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(f"#{control}")).to_be_focused()
    page.locator(f"#{control}").fill({"class": "cat", "steps": "3", "eps": "4", "fidelity": "10"}[control])
    page.locator(f"#{control}").press("Enter")
    visit.state("done")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator(f"#{control}")).not_to_have_attribute("aria-invalid", "true")
    visit.wrong = [text for text in visit.wrong if "400 (Bad Request)" not in text]


def test_an_empty_mask_and_nothing_to_save_are_said(visit):
    page = visit.page
    page.locator("#save").click()
    expect(page.locator("#problem")).to_have_text("result: there is none yet; run first")
    page.locator("#mask-clear").click()
    page.locator("#run").click()
    expect(page.locator("#problem")).to_contain_text("mask: nothing is painted yet")


def test_a_studio_that_has_ended_is_said(chromium, server):
    visit = Visit(chromium, server.url)
    page = visit.open()
    visit.context.set_offline(True)
    page.locator("#run").click()
    expect(page.locator("#problem")).to_contain_text("The studio does not answer")
    visit.close()


# ------------------------------------------------------------------------------------------------ keys alone, and looks


def test_everything_is_reached_by_keys_with_a_focus_that_is_seen(visit):
    page = visit.page
    visit.run()
    wanted = {"help", "tab-paint", "image", "wipe", "scrub", "run", "keep", "zoom-out", "zoom-fit", "zoom-in", "choose"}
    wanted |= {"camera", "size", "brush", "mask-clear", "mask-invert", "mask-load", "mask-save", "class", "steps"}
    wanted |= {"steps-range", "eps", "eps-range", "step_size", "strength", "fidelity", "save", "download", "gif"}
    seen: set[str] = set()
    page.evaluate("document.activeElement.blur()")
    script = """() => { const at = document.activeElement, next = at.nextElementSibling;
        const outlined = (one) => one && parseFloat(getComputedStyle(one).outlineWidth) >= 2
            && getComputedStyle(one).outlineStyle !== "none";
        return [at.id || at.closest("[id]")?.id, outlined(at) || outlined(next) || outlined(at.closest("label"))]; }"""
    for _ in range(75):
        page.keyboard.press("Tab")
        name, is_seen = page.evaluate(script)
        if name is None:  # past the last one; the first one follows
            continue
        assert is_seen, f"no focus is seen on {name}"
        seen.add(name)
    assert wanted <= seen, wanted - seen


def test_a_mask_is_painted_and_a_run_made_and_saved_by_keys_alone(visit):
    page = visit.page
    page.locator("#tab-paint").focus()
    page.keyboard.press("ArrowRight")  # to the next tab
    expect(page.locator("#tab-inpaint")).to_be_focused()
    page.locator("#mask-clear").focus()
    page.keyboard.press("Enter")
    assert visit.painted == 0
    page.locator("#image").focus()
    page.keyboard.down("p")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("p")
    painted = visit.painted
    assert painted > 60
    page.keyboard.press("ArrowDown")  # the pen is up
    assert visit.painted == painted
    page.keyboard.press("Enter")
    visit.state("done")
    page.keyboard.press("Control+s")
    expect(page.locator("#saved")).to_contain_text("-inpaint")


def test_every_control_has_a_name(visit):
    page = visit.page
    script = """() => [...document.querySelectorAll("input, select, textarea, button, canvas, video, progress")]
        .filter((one) => !one.closest("[hidden], [aria-hidden=true]"))
        .filter((one) => !one.closest("button, #features label") || one.tagName === "BUTTON")
        .filter((one) => !(one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim()))
        .map((one) => one.outerHTML.slice(0, 80))"""
    for tab in TABS:
        visit.tab(tab)
        assert page.evaluate(script) == []


LOOKS = """() => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const channel = (level) => linear(level / 255);
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const ground = (one) => { for (; one; one = one.parentElement) {
        const c = parse(getComputedStyle(one).backgroundColor); if (c.length < 4 || c[3] > 0.5) return c; }
        return parse(getComputedStyle(document.body).backgroundColor); };
    const wrong = [];
    for (const one of document.querySelectorAll("body *")) {
        const box = one.getBoundingClientRect();
        if (!box.width || !box.height || one.closest("[hidden], script, datalist, :disabled, #stage, option")) continue;
        const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        const scrolls = one.closest("#tabs, #pictures, #features");
        if (!scrolls && (box.right > innerWidth + 1 || box.left < -1)) wrong.push(`cut: ${one.outerHTML.slice(0, 90)}`);
        if (own && one.tagName === "BUTTON" && one.scrollWidth > one.clientWidth + 1) wrong.push(`full: ${one.id}`);
        if (!own && !one.matches("input")) continue;
        const style = getComputedStyle(one), [a, b] = [light(parse(style.color)), light(ground(one))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(2)}: ${one.outerHTML.slice(0, 90)}`);
        const size = parseFloat(style.fontSize);
        if (![13, 16, 20].includes(size)) wrong.push(`type of ${size} px: ${one.outerHTML.slice(0, 90)}`);
    }
    if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page scrolls sideways");
    return wrong; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_it_fits_and_can_be_read_on_every_tab(chromium, server, viewport, scheme):
    """Nothing is cut at 390 px, text has a contrast of 4.5 (WCAG AA), and there are three sizes of type."""
    visit = Visit(chromium, server.url, viewport=viewport, color_scheme=scheme)
    page = visit.open()
    page.locator("#help summary").click()
    assert page.evaluate(LOOKS) == []
    page.locator("#help summary").click()
    for tab in TABS:
        visit.tab(tab)
        assert page.evaluate(LOOKS) == []
        if tab == "sketch":
            visit.drag((0.2, 0.6), (0.8, 0.6))
        visit.run()
        page.locator("#save").click()
        expect(page.locator("#saved")).to_contain_text(f"-{tab}")
        assert page.evaluate(LOOKS) == []
    page.locator("#tab-paint").click()
    page.locator("[name=what][value=feature]").check()
    expect(page.locator("#features label")).to_have_count(24)
    assert page.evaluate(LOOKS) == []
    with suppress(playwright.Error):
        page.locator("#camera").click()  # there is none
        expect(page.locator("#problem")).to_contain_text("camera: cannot be had")
    assert page.evaluate(LOOKS) == []
    visit.close()
    assert visit.wrong == []


def test_a_run_is_downloaded_as_png_and_gif(visit, tmp_path):
    page = visit.page
    visit.run()
    for button, kind, frames in (("#download", "PNG", 1), ("#gif", "GIF", 21)):
        with page.expect_download() as download:
            page.locator(button).click()
        download.value.save_as(tmp_path / "made")
        with Image.open(tmp_path / "made") as image:
            assert (image.format, getattr(image, "n_frames", 1)) == (kind, frames)
            if kind == "PNG":
                assert (np.asarray(image) == visit.pixels()).all()
