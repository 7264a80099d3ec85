"""What every command line does the same way: flags of a schema, config, --dry-run, --json, one line for bad input.

Each field of the schema is a flag, with its values, default and range in the help. Flags stand in groups: a group is
the class that declares its fields; its name ("MachineFlags": machine) is the title, its docstring what the help says of
it. A section of the config is a group as well.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

import yaml

from robust_models.errors import UserError
from robust_models.runtime.config import Leaf, as_json, as_plain, leaves, read_recipe, resolve
from robust_models.runtime.help_format import HelpFormatter
from robust_models.runtime.signals import Interrupted, leaving_on_signals

Summary = dict[str, Any]
IN_RECIPE = "Each is a flag, or a field of the recipe that --config names."
_TITLED = re.compile(r"(\w[\w ]{0,30}): ")


def within(summary: Mapping[str, Any], name: str) -> str:
    """ " (95 %: 0.1 to 0.3)", the interval of the number called name; "" where it has none."""
    if (interval := summary.get(f"{name}_interval")) is None:
        return ""
    return f" (95 %: {interval[0]:.6g} to {interval[1]:.6g})"


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
        if not word.startswith("-"):
            return f"{word}: no such argument; several values of a flag go with commas between them; see --help"
        return f"{word}: no such flag" + (f"; did you mean {near[0]}?" if near else "; see --help")


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


@dataclass(frozen=True)
class Command:
    """A schema, the work on a config of it, and its summary in words; both functions import what they need."""

    name: str  # as it is typed
    about: str
    schema: type
    work: Callable[[Any], Summary | None]  # None: a rank of torchrun's that has helped; the first one has the summary
    format_summary: Callable[[Summary], str]
    examples: str = ""
    defaults: Callable[[str], dict[str, Any]] = lambda recipe: {}  # fields that a recipe's name sets
    needs_recipe: bool = False
    takes_recipe: bool = True  # False: a command of few words, without --config and --dry-run
    positionals: Sequence[str] = ()  # fields that are typed without their flag
    check: Callable[[Any], None] = lambda config: None  # --dry-run: UserError for names that the work would refuse

    def __call__(self, argv: Sequence[str]) -> int:
        flags = vars(self.parser().parse_args(argv))
        recipe, dry_run, in_json, _ = (flags.pop(name, None) for name in ("config", "dry_run", "json", "debug"))
        values = {**self.defaults(recipe), **read_recipe(recipe)} if recipe else {}
        config = resolve(self.schema, values, flags)
        if dry_run:
            self.check(config)
            yaml.safe_dump(as_plain(config), sys.stdout, sort_keys=False)
            return 0
        try:
            summary = self.work(config)
        except (Interrupted, KeyboardInterrupt):
            if os.environ.get("WORLD_SIZE", "1") == "1":
                print(f"go on with: {self.name} {shlex.join(argv)}", file=sys.stderr)
            raise
        if summary is not None:
            print(as_json(summary) if in_json else self.format_summary(summary), flush=True)
        return 0

    def parser(self) -> OneLineParser:
        """The parser of the command's words; its help shows each flag in its group."""
        fields = {leaf.name: leaf for leaf in leaves(self.schema)}
        words = [f"[{name.upper()}]" if fields[name].is_optional else name.upper() for name in self.positionals]
        if self.needs_recipe:
            words.append("--config YAML")
        else:
            required = [leaf for name, leaf in fields.items() if not (leaf.is_optional or name in self.positionals)]
            words += [f"{leaf.flag} {leaf.placeholder}" for leaf in required]
        parser = OneLineParser(
            prog=self.name,
            usage=" ".join(["%(prog)s", *words, "[flags]"]),
            description=self.about,
            epilog=self.examples and f"examples:\n{self.examples}",
        )
        for name in self.positionals:
            add_positional(parser, fields[name])
        self.add_command_flags(parser)
        add_config_flags(parser, self.schema, skip=self.positionals, defaults=self.defaults("RECIPE"))
        return parser

    def add_command_flags(self, parser: OneLineParser) -> None:
        """The flags that are no field of the config."""
        parser.command_line.add_argument("--json", action="store_true", help="print the summary as JSON")
        if not self.takes_recipe:
            return
        (parser.required if self.needs_recipe else parser.command_line).add_argument(
            "--config",
            metavar="YAML",
            required=self.needs_recipe,
            help="a path, or a recipe that comes with the package (bigroc recipes)",
        )
        parser.command_line.add_argument(
            "--dry-run", action="store_true", help="check the config, print it as YAML and stop"
        )

    def variants(self) -> Sequence["Command"]:
        """Commands with flags of their own that a flag of this one, as --task of refine, puts in its place."""
        return ()


class Described(Protocol):
    """What OneOf chooses among: a Command, or whatever else takes the words behind its own."""

    @property
    def about(self) -> str:
        """What it does, in one line."""
        ...

    def __call__(self, argv: Sequence[str]) -> int: ...


@dataclass(frozen=True)
class OneOf:
    """A command line whose first word chooses among commands, as in `bigroc eval robust ...`."""

    name: str
    about: str
    noun: str  # what the commands are: "measurement"
    commands: Mapping[str, Described]
    examples: str = ""
    version: Callable[[], str] | None = None  # what --version prints

    def __call__(self, argv: Sequence[str]) -> int:
        word = getattr(self.parser().parse_args(argv[:1]), self.noun)
        if word not in self.commands:
            near = difflib.get_close_matches(word, self.commands, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.commands)}"
            raise UserError(f"{word}: no such {self.noun}; {hint}")
        return self.commands[word](argv[1:])

    def parser(self) -> OneLineParser:
        """The parser of the first word alone; its help lists the commands."""
        width = max(map(len, self.commands))
        listed = "".join(f"  {name:{width}}  {command.about}\n" for name, command in self.commands.items())
        parser = OneLineParser(
            prog=self.name,
            usage=f"%(prog)s {self.noun.upper()} ...",
            description=f"{self.about}\n\n{self.noun}s ({self.name} {self.noun.upper()} --help says more):\n{listed}",
            epilog=self.examples and f"examples:\n{self.examples}",
        )
        parser.required.add_argument(self.noun, metavar=self.noun.upper(), help="one of those above")
        if self.version is not None:
            parser.command_line.add_argument(
                "--version", action=_PrintAndExit, text=self.version, help="print version and git revision, and stop"
            )
        return parser


class _PrintAndExit(argparse.Action):
    """A flag like --help: prints what text() gives, exit status 0."""

    def __init__(self, option_strings: Sequence[str], dest: str, text: Callable[[], str], help: str) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(self.text())
        parser.exit()


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """The command's exit status; a UserError becomes one line on stderr and status 2 (--debug: its traceback too).

    SIGTERM and Ctrl-C raise Interrupted, a SystemExit with signals.EXIT_STATUS, wherever the command stands.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with leaving_on_signals():
            return command(words)
    except UserError as error:
        if "--debug" in words:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
