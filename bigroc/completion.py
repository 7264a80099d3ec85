"""bigroc completion bash|zsh: the script that completes commands, flags, names and values at the Tab key.

shtab writes it once from the parsers, so that completing starts no Python: what a new release adds, its script knows.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from bigroc.recipes import recipes
from refine.cli import tasks
from refine.config import GUESSES
from refine.generators.generator_flags import KINDS
from refine.stopping import MEDIAN
from refine.targets import ONE_CLASS
from robust_models import embedded_names
from robust_models.errors import UserError
from robust_models.runtime.command import Command, OneLineParser, Summary
from robust_models.runtime.config import STRICT, Leaf, leaves

EXAMPLES = """\
  bigroc completion bash > ~/.local/share/bash-completion/completions/bigroc
  bigroc completion zsh > ~/.zfunc/_bigroc       (with fpath+=~/.zfunc before compinit in ~/.zshrc)
"""
Shell = Literal["bash", "zsh"]
CLASSIFIERS = ("ckpt", "init", "file")  # fields that take an embedded classifier's name, or a file


@dataclass(frozen=True, config=STRICT)
class CompletionConfig:
    """Which shell."""

    shell: Shell = Field(description="the shell that is to read the script")


def open_values() -> dict[str, Sequence[str]]:
    """The known words of fields that take others too, such as files: by the field's last name."""
    from eval.quality.metric import MetricName
    from eval.robust.attacks.catalogue import PLAIN
    from robust_models.architectures import ACTIVATIONS
    from robust_models.architectures.registry import EXAMPLES as ARCHITECTURES
    from robust_models.classifier import NORMALIZERS
    from robust_models.features.extractor import feature_spaces

    spaces = [*feature_spaces(), *(f"classifier:{name}" for name in embedded_names())]
    return {
        **dict.fromkeys(CLASSIFIERS, embedded_names()),
        "metrics": (*get_args(MetricName), "all"),
        "features": spaces,
        "judge": [*spaces, *embedded_names()],
        "attack": tuple(PLAIN),
        "arch": ARCHITECTURES,
        "activation": tuple(ACTIVATIONS),
        "normalize": tuple(NORMALIZERS),
        "targets": ("given", *GUESSES, ONE_CLASS),
        "stop_energy": (MEDIAN,),
        "generator": [f"{kind}:" for kind in KINDS],
    }


def script(shell: Shell) -> str:
    """The completion script of `bigroc` for this shell."""
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion: needs the package shtab; pip install shtab") from error
    from bigroc.cli import front_door

    return shtab.complete(_tree(front_door()), shell)


def _tree(command: Any) -> argparse.ArgumentParser:
    """The command's parser, with the parsers of its commands below it and the values that its flags take."""
    command = command.load() if hasattr(command, "load") else command
    parser = OneLineParser(prog=command.name, description=command.about.replace("%", "%%"))
    whole = command.parser()
    if isinstance(command, Command):
        variants = [command, *command.variants()]
        fields = {leaf.name: leaf for one in variants for leaf in leaves(one.schema)}
        for one in variants:
            _add_missing(whole, one.parser())
        for action in whole._actions:
            _offer_values(action, fields.get(action.dest), command.name)
            if not action.option_strings:
                parser._add_action(action)
    _add_missing(parser, whole)
    children: Mapping[str, Any] = getattr(command, "commands", {})
    if children:
        parsers = iter([_tree(child) for child in children.values()])
        below = parser.add_subparsers(parser_class=lambda **_: next(parsers))  # type: ignore[arg-type]
        for name, child in children.items():
            below.add_parser(name, help=child.about.replace("%", "%%"))
    return parser


def _add_missing(parser: argparse.ArgumentParser, other: argparse.ArgumentParser) -> None:
    """The flags of `other` that the parser has not."""
    known = {flag for action in parser._actions for flag in action.option_strings}
    for action in other._actions:
        if action.option_strings and not known & set(action.option_strings):
            parser._add_action(action)


def _offer_values(action: argparse.Action, leaf: Leaf | None, command: str) -> None:
    """What the Tab key offers as the action's value: words, files, or both; behind a comma, the words again."""
    word = command.split()[1]
    last = action.dest.rsplit(".", 1)[-1]
    if action.dest == "config" or (word, last) == ("recipes", "name"):
        names = [recipe.name for recipe in recipes() if word in (recipe.command, "recipes")]
        _words_or_files(action, f"{word}_recipes", names)
    elif action.dest == "task":
        action.choices = tasks()
    elif leaf is not None and leaf.takes_path:
        action.complete = "file"  # type: ignore[attr-defined]  # shtab's word for any path
    elif leaf is not None and leaf.choices:
        action.choices = leaf.choices
    elif leaf is not None and (words := open_values().get(last)):
        _words_or_files(action, last, words)


def _words_or_files(action: argparse.Action, name: str, words: Sequence[str]) -> None:
    function, listed = f"_bigroc_{name}_or_file", " ".join(words)
    in_list = 'local p=""; [[ "$1" == *,* ]] && p="${1%,*},"'
    body = {
        "bash": f'{in_list}; compgen -P "$p" -W "{listed}" -- "${{1##*,}}"; compgen -f -- "$1"',
        "zsh": f"compset -P '*,'; _alternative 'names:name:({listed})' 'files:file:_files'",
    }
    preamble = {shell: f"{function}() {{ {text}; }}" for shell, text in body.items()}
    action.complete = dict.fromkeys(body, function) | {"preamble": preamble}  # type: ignore[attr-defined]  # for shtab


def _run(config: CompletionConfig) -> Summary:
    return {"shell": config.shell, "script": script(config.shell)}


COMPLETION = Command(
    name="bigroc completion",
    about="Print the script that completes commands, flags and names in bash or zsh.",
    schema=CompletionConfig,
    work=_run,
    format_summary=lambda summary: summary["script"],
    examples=EXAMPLES,
    positionals=("shell",),
    takes_recipe=False,
)
