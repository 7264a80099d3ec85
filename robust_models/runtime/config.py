"""One config, three sources: defaults, a YAML recipe, flags. Checked once here, trusted everywhere else.

The schema is a frozen pydantic dataclass; nested dataclasses are sections: `attack: {eps: 1}` is `--attack.eps 1`.
"""

import argparse
import dataclasses
import difflib
import json
import re
import sys
import types
import typing
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from robust_models.errors import UserError, none_of

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_PACKAGE = Path(__file__).parent.parent
RECIPES = next(path for path in (_PACKAGE.parent / "configs", _PACKAGE / "recipes") if path.is_dir())


def _fraction(value: Any) -> Any:
    """ "8/255" is how the field writes Linf radii."""
    try:
        return float(Fraction(value)) if isinstance(value, str) and "/" in value else value
    except (ValueError, ZeroDivisionError):
        return value


Number = Annotated[float, BeforeValidator(_fraction)]
Positive = Annotated[Number, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
DEVICE = "auto, cpu, cuda, cuda:1, ..."  # the description of every `device` field


class OneLineParser(argparse.ArgumentParser):
    """argparse whose mistakes are one line, with the near miss, and whose flags take `-` and `_` alike."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--debug", action="store_true", help="on an error, show the traceback")

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = [_dashed(word) for word in (sys.argv[1:] if args is None else args)]
        known, unknown = self.parse_known_args(words, namespace)
        if unknown:
            raise UserError(self._unknown(unknown[0]))
        return known

    def _unknown(self, word: str) -> str:
        near = difflib.get_close_matches(word, list(self._option_string_actions), n=1)
        return f"{word}: no such {'flag' if word.startswith('-') else 'argument'}" + (
            f"; did you mean {near[0]}?" if near else "; see --help"
        )


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def add_config_flags(parser: argparse.ArgumentParser, schema: type, *, skip: Sequence[str] = ()) -> None:
    """One flag for every field of the schema, sections dotted; what is not given stays out of the result."""
    for name, field, default in _leaves(schema):
        if name in skip:
            continue
        text = (field.description or "").replace("%", "%%")
        shown = "" if default is dataclasses.MISSING else f" (default: {_plain(default)})"
        flag = "--" + name.replace("_", "-")
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text + shown}
        if isinstance(default, bool):
            parser.add_argument(flag, nargs="?", const="true", metavar="BOOL", **options)
        else:
            parser.add_argument(flag, metavar=name.rsplit(".", 1)[-1].upper(), **options)


def resolve(schema: type, values: dict[str, Any], *flags: dict[str, str]) -> Any:
    """An instance of the schema from nested values, overridden by dotted flags whose text is read as YAML."""
    texts = {name for name, _, _ in _leaves(schema) if _is_text(_hint(schema, name))}
    for given in flags:
        for name, text in given.items():
            _put(values, name, text if name in texts and text != "null" else _scalar(text))
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise UserError(_one_line(error, schema)) from error


def shipped_recipes() -> list[Path]:
    """The YAML recipes of configs/, by name."""
    return sorted(RECIPES.glob("*.yaml"))


def find_recipe(name: str, *, field: str = "--config") -> Path:
    """The recipe at the path `name`, or shipped under that name in configs/. UserError, begun with `field`, if none."""
    path = Path(name)
    if not path.is_file():
        path = RECIPES / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not path.is_file():
        shipped = [file.name for file in shipped_recipes()]
        near = difflib.get_close_matches(name, shipped, n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(shipped)}"
        raise UserError(f"{field}: no file {name}; {hint}")
    return path


def read_recipe(name: str) -> dict[str, Any]:
    """The fields of the YAML recipe at the path `name`, or shipped under that name in configs/."""
    path = find_recipe(name)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"--config: {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} holds {type(values).__name__}, expected a mapping of fields")
    return values


def as_plain(config: Any) -> dict[str, Any]:
    """The resolved config as JSON-ready values; validating them again gives an equal config."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def _leaves(schema: type, prefix: str = "") -> list[tuple[str, FieldInfo, Any]]:
    """(dotted name, pydantic field, default or MISSING) for every field that is not a section."""
    hints = get_type_hints(schema)
    leaves: list[tuple[str, FieldInfo, Any]] = []
    for name, field in schema.__pydantic_fields__.items():
        if dataclasses.is_dataclass(hints[name]):
            leaves += _leaves(hints[name], f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            required = field.is_required()
            default = (
                dataclasses.MISSING if required else field.get_default(call_default_factory=True, validated_data={})
            )
            leaves.append((prefix + name, field, default))
    return leaves


def _hint(schema: type, dotted: str) -> Any:
    for name in dotted.split("."):
        schema = get_type_hints(schema)[name]
    return schema


def _is_text(hint: Any) -> bool:
    """A field that takes text or a path, perhaps None: --out 2024 is a folder, not a number."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return set(members) <= {str, Path, type(None)}


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{section}: is {inner!r} in the config, expected a section with the field {last}")
        values = inner
    values[last] = value


def _scalar(text: str) -> Any:
    """A flag's text as YAML reads it; 1e-3 is a number here, though YAML 1.1 wants 1.0e-3."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(value: Any) -> str:
    return json.dumps(value, default=str)


def _one_line(error: ValidationError, schema: type) -> str:
    first = error.errors()[0]
    # Path pieces that name a member of a union, not a field, carry brackets.
    name = ".".join(str(piece) for piece in first["loc"] if not ("[" in str(piece) or str(piece) in ("float", "int")))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 and first["type"] in _KEY_ERRORS else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [leaf for leaf, _, _ in _leaves(schema)]
        near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
            name.rsplit(".", 1)[-1], [leaf.rsplit(".", 1)[-1] for leaf in known], n=1
        )
        return (
            f"{name}: unknown key" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}") + more
        )
    if first["type"] in ("missing", "missing_argument"):
        return f"{name}: is required{more}"
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
        return f"{name}: {none_of(first['input'], choices)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # our own checks of a whole section: their message begins with the field
        return f"{name}.{message}" if name else message
    return f"{name}: {message[0].lower() + message[1:]}; got {first['input']!r}"


_KEY_ERRORS = ("extra_forbidden", "unexpected_keyword_argument", "missing", "missing_argument")
