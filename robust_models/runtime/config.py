"""One config, three sources: defaults, a YAML recipe, flags. Checked once here, trusted everywhere else.

The schema is a frozen pydantic dataclass; nested dataclasses are sections: `attack: {eps: 1}` is `--attack.eps 1`.
"""

import dataclasses
import difflib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
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


def several(value: Any) -> Any:
    """One value is a list of one, and text with commas a list: --eps 1,3. For fields that hold several."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value if isinstance(value, list | tuple | dict) else [value]


Number = Annotated[float, BeforeValidator(_fraction)]
Positive = Annotated[Number, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
ImageCount = Annotated[int, Field(ge=1, le=100_000_000)]  # more is a slip, and its bookkeeping alone fills memories
DEVICE = "auto, cpu, cuda, cuda:1, ..."  # the description of every `device` field


@pydantic_dataclass(frozen=True, config=STRICT, kw_only=True)
class DeviceFlags:
    """Machine: where the work runs."""

    device: str = Field(default="auto", description=DEVICE)


def resolve(schema: type, values: dict[str, Any], *flags: dict[str, str]) -> Any:
    """An instance of the schema from nested values, overridden by dotted flags whose text is read as YAML."""
    texts = {leaf.name for leaf in leaves(schema) if _is_text(leaf.hint)} if any(flags) else set()
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


def overlaid(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """values with changes over them: sections are merged, and "attack.eps" is eps in the section attack."""
    result = dict(values)
    for name, change in changes.items():
        section, _, rest = name.partition(".") if isinstance(name, str) else (name, "", "")
        if rest:
            change = {rest: change}
        old = result.get(section)
        nested = isinstance(change, Mapping) and (rest or isinstance(old, Mapping))
        result[section] = overlaid(old if isinstance(old, Mapping) else {}, change) if nested else change
    return result


def read_recipe(name: str) -> dict[str, Any]:
    """The fields of the YAML recipe at the path `name`, or shipped under that name in configs/."""
    path = find_recipe(name)
    try:
        values = yaml.load(path.read_text(), _Yaml)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"--config: {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} holds {type(values).__name__}, expected a mapping of fields")
    return values


def as_plain(config: Any) -> dict[str, Any]:
    """The resolved config as JSON-ready values; validating them again gives an equal config."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def as_json(value: Any, **how: Any) -> str:
    """JSON that every reader takes: NaN and Infinity, which Python alone writes, are null. how: as of json.dumps."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), allow_nan=False, **how)


def as_stated(config: Any) -> dict[str, Any]:
    """as_plain without the fields at their defaults: one that comes later, with its default, changes nothing."""

    def stated(plain: dict[str, Any]) -> dict[str, Any]:
        found = {name: stated(value) if isinstance(value, dict) else value for name, value in plain.items()}
        return {name: value for name, value in found.items() if value != {}}

    return stated(TypeAdapter(type(config)).dump_python(config, mode="json", exclude_defaults=True))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field of a schema that is not a section."""

    name: str  # dotted
    field: FieldInfo
    hint: Any  # its type
    default: Any  # dataclasses.MISSING where it has to be given
    owner: type  # the class that declares it first: its group in the help
    section: str = ""  # the dotted name of the section it is in

    @property
    def flag(self) -> str:
        """As it is typed: "--attack.step-size"."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_optional(self) -> bool:
        """Whether it has a default."""
        return self.default is not dataclasses.MISSING

    @property
    def placeholder(self) -> str:
        """What stands for its value: N, X (a number), PATH, a word, or a|b|c where it takes these only."""
        kinds = [kind for kind in _members(self.hint) if typing.get_origin(kind) is not Literal]
        if self.is_closed:
            return "|".join(self.choices)
        simple = {int: "N", float: "X", Path: "PATH"}
        names = {simple.get(kind, self.name.rsplit(".", 1)[-1].upper()) for kind in kinds if kind is not type(None)}
        return "|".join([*sorted(names)[:1], *self.choices])

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes: those of its Literal types, and true and false."""
        return tuple(dict.fromkeys(_words(self.hint)))

    @property
    def takes_path(self) -> bool:
        """Whether it takes the path of a file or folder."""
        return Path in _members(self.hint)

    @property
    def is_closed(self) -> bool:
        """Whether it takes its choices only."""
        return all(typing.get_origin(kind) is Literal or kind in (bool, type(None)) for kind in _members(self.hint))


def leaves(schema: type, prefix: str = "") -> list[Leaf]:
    """Every field that is not a section, in the order of declaration."""
    hints = get_type_hints(schema)
    found: list[Leaf] = []
    for name, field in schema.__pydantic_fields__.items():
        if dataclasses.is_dataclass(hints[name]):
            found += leaves(hints[name], f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        required = field.is_required()
        default = dataclasses.MISSING if required else field.get_default(call_default_factory=True, validated_data={})
        owner = next(kind for kind in reversed(schema.__mro__) if name in inspect.get_annotations(kind))
        found.append(Leaf(prefix + name, field, hints[name], default, owner, prefix.rstrip(".")))
    return found


def _members(hint: Any) -> Iterator[Any]:
    """The kinds of value that a type is a union of."""
    if typing.get_origin(hint) is Annotated:
        yield from _members(typing.get_args(hint)[0])
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _members(member)
    else:
        yield hint


def _words(hint: Any) -> Iterator[str]:
    for kind in _members(hint):
        if typing.get_origin(kind) is Literal:
            yield from map(str, typing.get_args(kind))
        elif kind is bool:
            yield from ("true", "false")


def _is_text(hint: Any) -> bool:
    """A field that takes text or a path, perhaps None: --out 2024 is a folder, not a number."""
    return set(_members(hint)) <= {str, Path, type(None)}


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{section}: is {inner!r} in the config, expected a section with the field {last}")
        values = inner
    values[last] = value


class _Yaml(yaml.SafeLoader):
    """YAML without the base 60 of its version 1.1, which reads 1:30 as 90: here that stays text."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return node.value
        as_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if as_int else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Yaml.add_constructor(f"tag:yaml.org,2002:{_tag}", _Yaml.construct_number)


def _scalar(text: str) -> Any:
    """A flag's text as YAML reads it; 1e-3 is a number here, though YAML 1.1 wants 1.0e-3."""
    try:
        value = yaml.load(text, _Yaml)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(error: ValidationError, schema: type) -> str:
    first = error.errors()[0]
    # Path pieces that name a member of a union, not a field, carry brackets or are names of numbers.
    name = ".".join(str(piece) for piece in first["loc"] if not ("[" in str(piece) or str(piece) in _NUMBERS))
    others = sum(one["type"] in _KEY_ERRORS for one in error.errors()) - 1
    more = f" (and {others} more)" if others > 0 and first["type"] in _KEY_ERRORS else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        if any(isinstance(piece, int) for piece in first["loc"]):  # in a list: of another schema
            return f"{name}: unknown key{more}"
        known = [leaf.name for leaf in leaves(schema)]
        near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
            name.rsplit(".", 1)[-1], [leaf.rsplit(".", 1)[-1] for leaf in known], n=1
        )
        return (
            f"{name}: unknown key" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}") + more
        )
    if first["type"] in ("missing", "missing_argument"):
        return f"{name}: is required{more}"
    if first["type"] in ("tuple_type", "list_type"):
        return f"{name}: input should be a list, as [a, b]; got {first['input']!r}"
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
        return f"{name}: {none_of(first['input'], choices)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # our own checks of a whole section: their message begins with the field
        return f"{name}.{message}" if name else message
    return f"{name}: {message[0].lower() + message[1:]}; got {first['input']!r}"


_NUMBERS = ("float", "int", "constrained-float", "constrained-int")
_KEY_ERRORS = ("extra_forbidden", "unexpected_keyword_argument", "missing", "missing_argument")
