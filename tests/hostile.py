"""Over a hundred hostile and broken checkpoint files, and a process to read them in.

    python -m tests.hostile FOLDER CORPUS

reads each of them, and the inputs of tests/fuzz_unpickle.py in CORPUS, as a file of FOLDER and reports it in JSON.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz_unpickle import as_file, check, watch
from tests.hostile_archives import cut_short, lying_streams, lying_tars, lying_zips
from tests.hostile_pickles import multiplying_pickles


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    for group, files in (
        ("pickle", {case: as_file(b"z" + data) for case, data in multiplying_pickles().items()}),
        ("zip", lying_zips()),
        ("stream", lying_streams()),
        ("tar", lying_tars()),
        ("cut", cut_short()),
    ):
        yield from ((f"{group}: {case}", content) for case, content in files.items())


def _peak_mb() -> float:
    """Memory of this process at its highest; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1024 if status.exists() else 0.0


def main() -> None:
    from robust_models.checkpoints.layouts import find_layout
    from robust_models.checkpoints.torch_format.torch_file import read_torch_file

    def read_network(path: Path) -> None:
        find_layout(read_torch_file(path), ema=False, where=f"ckpt: {path}")

    path, seeds = Path(sys.argv[1]) / "file.pt", Path(sys.argv[2])
    watch()
    for case, content in hostile_files():
        _report(case, content, path, read_network)
    for seed in sorted(seeds.iterdir()):
        _report(f"seed: {seed.name}", as_file(seed.read_bytes()), path, read_torch_file)


def _report(case: str, content: bytes, path: Path, read: Callable[[Path], Any]) -> None:
    print(json.dumps({"begins": case}), flush=True)
    before, start = _peak_mb(), time.monotonic()
    try:
        found = {"message": check(content, path, read), "finding": None}
    except Exception as error:
        found = {"message": None, "finding": f"{type(error).__name__}: {error}"}
    print(json.dumps({**found, "seconds": time.monotonic() - start, "growth_mb": _peak_mb() - before}), flush=True)


if __name__ == "__main__":
    main()
