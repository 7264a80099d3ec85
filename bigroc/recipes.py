"""bigroc recipes [NAME] [--json]: what --config knows by name, from the comments at the head of each YAML file."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from robust_models.runtime.command import Command, Summary
from robust_models.runtime.config import STRICT, find_recipe, shipped_recipes

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


@pydantic_dataclass(frozen=True, config=STRICT)
class RecipesConfig:
    """Which recipes."""

    name: str | None = Field(default=None, description="print this recipe's file (default: list all)")


def recipes() -> list[Recipe]:
    """All shipped recipes, by command and name."""
    found = [_read(path) for path in shipped_recipes()]
    return sorted(found, key=lambda recipe: (recipe.command, recipe.name))


def _read(path: Path) -> Recipe:
    """The head of a recipe is its first line in words, then commands (indented), then paragraphs "Cost: ..." and so on.

    A paragraph ends where the next one begins with a capitalised word and a colon; the head, at the first line of YAML.
    """
    head = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    about, *rest = (line.removeprefix("# ") for line in head)
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


def _run(config: RecipesConfig) -> Summary:
    if config.name is None:
        return {"recipes": [asdict(recipe) for recipe in recipes()]}
    path = find_recipe(config.name, field="name")
    return {"path": str(path), "text": path.read_text("utf-8")}


def _format(summary: Summary) -> str:
    if "text" in summary:
        return summary["text"].rstrip("\n")
    return "\n\n".join(_in_words(Recipe(**fields)) for fields in summary["recipes"])


RECIPES = Command(
    name="bigroc recipes",
    about="The recipes of --config: what each does, costs and scores.",
    schema=RecipesConfig,
    work=_run,
    format_summary=_format,
    examples=EXAMPLES,
    positionals=("name",),
    takes_recipe=False,
)
