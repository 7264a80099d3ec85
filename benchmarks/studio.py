"""The studio's figures: until the page can be used, a live run over HTTP and in a browser, against the bare loop.

    python -m benchmarks.studio [--ckpt cifar10-l2-small] [--side 32] [--steps 20] [--repeats 30] [--browser]

The bare loop is the command's own, on the same image, without anybody who watches; the two alternate. The time in a
browser is from the key Enter to the end of the run, all frames drawn. The load of the machine is said beside; on a busy
one the least time is nearer to what a quiet one would need.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection
from struct import pack
from typing import Any

import torch

from refine.config import RefineConfig
from refine.pipeline import attack_of
from refine.studio.config import StudioConfig
from refine.studio.server import StudioServer
from robust_models.images import to_float, to_u8
from robust_models.runtime.version import environment


def opened(ckpt: str) -> tuple[StudioServer, float]:
    """A studio whose page has been had, and the seconds that took; imports are done."""
    started = time.perf_counter()
    server = StudioServer(StudioConfig(ckpt=ckpt, port=0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urllib.request.urlopen(server.url).read()
    for path in server.files:
        urllib.request.urlopen(server.url + path[1:]).read()
    posted(server, "/first", {})
    return server, time.perf_counter() - started


def posted(server: StudioServer, path: str, values: dict[str, Any], pixels: bytes = b"") -> bytes:
    """The whole answer."""
    text = json.dumps(values).encode()
    with closing(HTTPConnection(*server.server_address[:2])) as connection:
        body = pack("<I", len(text)) + text + pixels
        connection.request("POST", path, body, {"X-Studio-Token": server.token})
        return connection.getresponse().read()


def alternating(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def in_browser(server: StudioServer, steps: int, repeats: int) -> list[float]:
    """Seconds from Enter to the last frame, on the page that opens; none without playwright and chromium."""
    from playwright.sync_api import sync_playwright

    script = """(steps) => new Promise((done) => { const started = performance.now();
        new MutationObserver(() => { const { state, step } = document.body.dataset;
            if (state === "done" && Number(step) === steps) done((performance.now() - started) / 1000); })
            .observe(document.body, { attributes: true });
        document.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true })); })"""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        page.locator("body[data-state=idle]").wait_for()
        page.locator("#steps").fill(str(steps))
        page.locator("#steps").blur()
        seconds = [page.evaluate(script, steps) for _ in range(repeats + 1)][1:]
        browser.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--side", type=int, default=32, help="pixels of the image")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--browser", action="store_true", help="also in chromium")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)

    server, open_s = opened(flags.ckpt)
    x_u8 = torch.randint(0, 256, (1, 3, flags.side, flags.side), dtype=torch.uint8, generator=torch.manual_seed(0))
    options = {"eps": 2.0, "steps": flags.steps}
    config = RefineConfig(ckpt=flags.ckpt, input="input.png", out="out.png", **options)  # type: ignore[arg-type]
    attack, x, y = attack_of(config, 2.0), server.network.here(to_float(x_u8)), server.network.here(torch.tensor([0]))
    values = {"tab": "refine", "height": flags.side, "width": flags.side, "label": 0, "options": options}
    pixels = x_u8[0].permute(1, 2, 0).contiguous().numpy().tobytes()
    ways: dict[str, Callable[[], object]] = {
        "bare loop": lambda: to_u8(attack(server.network, x, y)).cpu(),
        "studio over HTTP": lambda: posted(server, "/run", values, pixels),
    }
    seconds = alternating(ways, flags.repeats)
    ratios = [b / a for a, b in zip(seconds["bare loop"], seconds["studio over HTTP"], strict=True)]
    if flags.browser:
        with suppress(ImportError):
            seconds["from Enter to the last frame drawn"] = in_browser(server, flags.steps, flags.repeats)
    weight = len(server.html) + sum(map(len, server.files.values()))
    print(f"{environment()}, load {os.getloadavg()[0]:.1f}, {server.precision}")
    print(f"until the page can be used, after imports: {open_s:.2f} s; its weight {weight / 1024:.0f} KiB")
    print(f"{flags.steps} steps of {flags.side} px, N {flags.repeats}, median (least):")
    for name, all_ in seconds.items():
        print(f"  {name:36} {1000 * statistics.median(all_):8.1f} ({1000 * min(all_):.1f}) ms")
    print(f"  peak of resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print(f"  overhead over the bare loop {100 * (statistics.median(ratios) - 1):+.1f} % (median of pairs)")


if __name__ == "__main__":
    main()
