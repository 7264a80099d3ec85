"""bigroc recipes [NAME] [--json]: what --config knows by name, from the comments at the head of each YAML file."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from robust_models.runtime.config import OneLineParser, find_recipe, shipped_recipes

EXAMPLES = """\
  bigroc recipes
  bigroc recipes cifar_l2_small
  bigroc recipes cifar_l2_small > mine.yaml       (a copy to change: bigroc train --config mine.yaml)
"""


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe, in its own words."""

    name: str
    command: str  # that takes it: "train", "refine" or "study"
    about: str
    cost: str
    score: str
    path: str


def run(argv: Sequence[str]) -> int:
    """Prints all recipes, or the file of the one that is named."""
    parser = OneLineParser(
        prog="bigroc recipes",
        description="The recipes that --config knows by name: what each does, costs and scores.",
        epilog=f"examples:\n{EXAMPLES}",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe's file")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    flags = parser.parse_args(argv)
    if flags.name is not None:
        print(find_recipe(flags.name, field="recipes").read_text("utf-8"), end="")
    elif flags.json:
        print(json.dumps([asdict(recipe) for recipe in recipes()]))
    else:
        print("\n\n".join(map(_in_words, recipes())))
    return 0


def recipes() -> list[Recipe]:
    """All shipped recipes, by command and name."""
    found = [_read(path) for path in shipped_recipes()]
    return sorted(found, key=lambda recipe: (recipe.command, recipe.name))


def _read(path: Path) -> Recipe:
    """The head of a recipe is its first line in words, then commands (indented), then paragraphs "Cost: ..." and so on.

    A paragraph ends where the next one begins with a capitalised word and a colon.
    """
    about, *rest = (line.removeprefix("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    commands = [line.split() for line in rest if line.startswith("  bigroc ")]
    paragraphs = _paragraphs([line for line in rest if not line.startswith("  ")])
    return Recipe(path.stem, commands[0][1], about, paragraphs["Cost"], paragraphs["Score"], str(path))


def _paragraphs(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    title = ""
    for line in lines:
        head, colon, text = line.partition(": ")
        if colon and head in ("Cost", "Score", "Note"):
            title, line = head, text
        found[title] = f"{found[title]} {line}" if title in found else line
    return found


def _in_words(recipe: Recipe) -> str:
    lines = [recipe.about, f"Cost: {recipe.cost}", f"Score: {recipe.score}"]
    width = shutil.get_terminal_size().columns
    wrapped = [textwrap.fill(line, width, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return "\n".join([f"{recipe.name}  (bigroc {recipe.command})", *wrapped])
