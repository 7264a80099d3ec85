"""What `python -m train` cannot help: a file or folder of the user's that Python finds under our packages' names."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[2]  # the folder that holds the packages
PACKAGES = ("robust_models", "train", "refine", "eval")


def shadows() -> list[str]:
    """The places that Python would import instead of this project's packages."""
    places = [_place(name) for name in PACKAGES]
    return [place for name, place in zip(PACKAGES, places, strict=True) if place and Path(place) != HOME / name]


def _place(name: str) -> str:
    """The folder of the package called `name`, or the file of the module; "" where there is neither."""
    spec = find_spec(name)
    if spec is None:
        return ""
    folders = list(spec.submodule_search_locations or [])
    return folders[0] if folders else spec.origin or ""


def warn_of_shadows() -> None:
    """One line on stderr, of the first rank, where something shadows a package."""
    found = shadows()
    if found and os.environ.get("RANK", "0") == "0":
        print(
            f"note: {', '.join(found)} hides a package of this project from `python -m`; "
            "the command `bigroc` is not affected, use it here",
            file=sys.stderr,
        )
