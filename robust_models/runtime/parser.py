"""The command line of a schema: one flag for every field, in groups, with its values, default and range in the help.

A group is the class that declares its fields: its name ("MachineFlags": machine) is the title, its docstring what the
help says of it. A section of the config is a group as well.
"""

import argparse
import difflib
import json
import re
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from robust_models.errors import UserError
from robust_models.runtime.config import Leaf, leaves

PROGRAMS = ("bigroc", "torchrun", "python")
IN_RECIPE = "Each is a flag, or a field of the recipe that --config names."


class HelpFormatter(argparse.HelpFormatter):
    """Wraps everything to the terminal: paragraphs at words, commands with a backslash, so that they can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{_wrapped(indent + line, width)}\n" for line in text.splitlines())

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        if usage is None:
            return super()._format_usage(usage, actions, groups, prefix)
        text = f"usage: {usage % {'prog': self._prog}}"
        return textwrap.fill(text, self._width, subsequent_indent=" " * 7, break_on_hyphens=False) + "\n\n"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = re.match(" *", line)[0]  # type: ignore[index]
    is_command = line.strip().startswith(PROGRAMS)
    columns = re.match(r" *\S+  +", line)  # "  name  what it is"
    hanging = " " * len(columns[0]) if columns and not is_command else indent + "    " * bool(indent)
    end = " \\" if is_command else ""
    kept = re.sub(r"(--\S+) (?=[^-\s])", "\\1\0", line)  # a flag and its value stay together
    parts = textwrap.wrap(
        kept, width - len(end), subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
    return f"{end}\n".join(parts).replace("\0", " ")


class OneLineParser(argparse.ArgumentParser):
    """argparse whose mistakes are one line, with the near miss, and whose flags take `-` and `_` alike."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=HelpFormatter, add_help=False)
        self.required = self.add_argument_group("required")
        self.command_line = self.add_argument_group("command line")
        self.command_line.add_argument("-h", "--help", action="help", help="show this help and stop")
        self.command_line.add_argument("--debug", action="store_true", help="on an error, show the traceback")

    def error(self, message: str) -> NoReturn:
        """UserError with the message: one line, no usage."""
        raise UserError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's. UserError for a flag that there is not, with the near miss."""
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


def add_config_flags(
    parser: OneLineParser, schema: type, *, skip: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> None:
    """One flag for every field of the schema, sections dotted; what is not given stays out of the result.

    Required ones come first, then the groups: the command's own before those of what it builds on. `defaults` has, by
    name, what the help says of fields that the command fills in itself.
    """
    shown = [replace(leaf, default=(defaults or {}).get(leaf.name, leaf.default)) for leaf in leaves(schema)]
    required, optional = [], []
    for leaf in shown:
        if leaf.name not in skip:
            (optional if leaf.is_optional else required).append(leaf)
    if required:
        parser.required.description = IN_RECIPE
    for leaf in required:
        _add_flag(parser.required, leaf)
    for title, members in _groups(schema, optional).items():
        group = parser.add_argument_group(title, _about(members[0].owner))
        for leaf in members:
            _add_flag(group, leaf)


def _groups(schema: type, members: Sequence[Leaf]) -> dict[str, list[Leaf]]:
    """By title: the schema's own fields, its sections, then what it inherits; what other packages share comes last."""
    home = schema.__module__.partition(".")[0]
    inherited = sorted(schema.__mro__[1:], key=lambda owner: owner.__module__.partition(".")[0] != home)
    titles = [_title(schema), *(leaf.section for leaf in members), *map(_title, inherited)]
    found: dict[str, list[Leaf]] = {title: [] for title in titles if title}
    for leaf in members:
        found[leaf.section or _title(leaf.owner)].append(leaf)
    return {title: leaves for title, leaves in found.items() if leaves}


def add_positional(parser: OneLineParser, leaf: Leaf) -> None:
    """A field that is typed without its flag."""
    options: dict[str, Any] = {"nargs": "?", "default": argparse.SUPPRESS} if leaf.is_optional else {}
    group = parser.command_line if leaf.is_optional else parser.required
    group.add_argument(leaf.name, metavar=leaf.placeholder, help=_help(leaf), **options)


def _add_flag(group: argparse._ArgumentGroup, leaf: Leaf) -> None:
    options: dict[str, Any] = {"dest": leaf.name, "default": argparse.SUPPRESS, "help": _help(leaf)}
    if isinstance(leaf.default, bool):
        options |= {"nargs": "?", "const": "true"}
    group.add_argument(leaf.flag, metavar=leaf.placeholder, **options)


def _help(leaf: Leaf) -> str:
    text = leaf.field.description or ""
    if leaf.default is None:
        text = text.replace("null: ", "default: ")
        if "default" not in text:
            text += " (default: none)"
    elif leaf.is_optional:
        text += f" (default: {_shown(leaf.default)})"
    return text.replace("%", "%%").strip()


def _shown(default: Any) -> str:
    if isinstance(default, str):
        return default or "none"
    if isinstance(default, tuple | list | dict) and not default:
        return "none"
    return json.dumps(default, default=lambda value: str(value)).replace('"', "")


def _title(owner: type) -> str:
    """ "Machine: where it runs." as docstring gives "machine"; else it is the class's name, without Flags or Config."""
    if titled := _TITLED.match(_docstring(owner)):
        return titled[1].lower()
    name = re.sub("(Flags|Config)$", "", owner.__name__)
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _about(owner: type) -> str | None:
    """What the group is, from the docstring's first paragraph."""
    text = _TITLED.sub("", _docstring(owner).partition("\n\n")[0])
    return (text[:1].upper() + text[1:]).replace("%", "%%") or None


def _docstring(owner: type) -> str:
    text = (owner.__dict__.get("__doc__") or "").strip()
    return "" if text.startswith(f"{owner.__name__}(") else text  # dataclass makes one where there is none


_TITLED = re.compile(r"(\w[\w ]{0,30}): ")
