"""--help of every command there is: groups, required flags, values, defaults, width."""

import argparse
from collections.abc import Iterator

import pytest

from bigroc.cli import front_door
from robust_models.runtime.command import Command
from robust_models.runtime.config import leaves

COLUMNS = 100


def commands(tree) -> Iterator[Command]:
    """Every Command below a OneOf or another Command, --task's among them, each once."""
    tree = tree.load() if hasattr(tree, "load") else tree
    if isinstance(tree, Command):
        yield tree
        yield from tree.variants()
    for child in getattr(tree, "commands", {}).values():
        yield from commands(child)


COMMANDS = {command.name: command for command in commands(front_door())}
ALL = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
CHECKPOINT_GROUP = "checkpoint"


def groups(command: Command) -> dict[str, list[argparse.Action]]:
    """By title, in the order of the help."""
    return {
        group.title or "": group._group_actions for group in command.parser()._action_groups if group._group_actions
    }


def test_all_commands_are_here():
    expected = {"train", "refine", "refine --task generate", "eval robust", "eval quality", "study", "survey"}
    expected |= {"survey report", "models inspect", "models convert", "recipes", "refine --task seeds"}
    assert {f"bigroc {name}" for name in expected} <= set(COMMANDS)


@ALL
def test_every_flag_is_in_a_group_that_is_described(command):
    found = groups(command)
    assert not set(found) & {"options", "positional arguments"}
    flags = {flag for members in found.values() for action in members for flag in action.option_strings}
    for leaf in leaves(command.schema):
        assert leaf.flag in flags or leaf.name in command.positionals
    for group in command.parser()._action_groups:
        if group._group_actions and group.title not in ("required", "command line"):
            assert group.description, f"{group.title} has no docstring"


@ALL
def test_required_ones_come_first_and_stand_in_the_usage(command):
    required = [leaf for leaf in leaves(command.schema) if not leaf.is_optional]
    parser = command.parser()
    usage = " ".join(parser.format_usage().split())
    filled_in = command.defaults("RECIPE")
    for leaf in required:
        if leaf.name in command.positionals:
            assert leaf.name.upper() in usage
        elif not command.needs_recipe:
            assert f"{leaf.flag} {leaf.placeholder}" in usage
    if command.needs_recipe:
        assert "--config YAML" in usage
    names = {leaf.name for leaf in required if leaf.name not in filled_in} | (
        {"config"} if command.needs_recipe else set()
    )
    if names:
        title, members = next(iter(groups(command).items()))
        assert title == "required"
        assert {action.dest for action in members} == names


@ALL
def test_the_flags_of_foreign_checkpoints_are_last(command):
    titles = list(groups(command))
    assert CHECKPOINT_GROUP not in titles[:-1]


@ALL
def test_every_flag_says_what_it_is_and_its_default(command):
    helps = {action.dest: action.help or "" for members in groups(command).values() for action in members}
    for leaf in leaves(command.schema):
        assert leaf.field.description, f"{leaf.flag} has no description"
        if leaf.name.rsplit(".", 1)[-1] in ("eps", "step_size") and not leaf.section == "robust":
            assert "[0,1]" in helps[leaf.name], f"{leaf.flag}: of which unit?"
        if leaf.is_optional or leaf.name in command.defaults("RECIPE"):
            assert "default" in helps[leaf.name], leaf.flag


@ALL
def test_every_value_of_a_closed_set_is_shown(command):
    shown = command.parser().format_help()
    words = " ".join(shown.split())
    for leaf in leaves(command.schema):
        if set(leaf.choices) - {"true", "false"}:
            for value in leaf.choices:
                assert value in words, f"{leaf.flag}: {value}"


@pytest.mark.parametrize("name", ["refine", "train", "eval robust", "eval quality", "study"])
def test_the_groups_of_the_main_commands(name):
    titles = list(groups(COMMANDS[f"bigroc {name}"]))
    expected = {
        "refine": [
            "required",
            "command line",
            "method",
            "targets",
            "search for eps and steps",
            "input",
            "generator",
            "output",
        ],
        "train": ["required", "command line", "run", "data", "augment", "smoothing", "attack", "objective"],
        "eval robust": ["required", "command line", "images", "attack"],
        "eval quality": ["required", "command line", "scores", "features"],
        "study": ["required", "command line", "study", "robust", "axes", "judge", "report"],
    }
    assert titles[: len(expected[name])] == expected[name]
    assert "machine" in titles


@ALL
@pytest.mark.parametrize("columns", [COLUMNS, 60])
def test_nothing_is_wider_than_the_terminal(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in command.parser().format_help().splitlines():
        assert len(line) <= columns or " " not in line.strip(), line


@ALL
def test_a_wrapped_example_is_still_the_same_command(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    shown = command.parser().format_help().partition("examples:\n")[2].replace(" \\\n", " ")
    written = command.examples.replace(" \\\n", " ")
    assert shown.split() == written.split()


def test_the_front_door_lists_every_command_in_the_words_of_its_own(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    front = front_door()
    shown = front.parser().format_help()
    for name, command in front.commands.items():
        assert f"  {name}" in shown
        assert command.about in " ".join(shown.split())
        assert command.load().name == f"bigroc {name}"
    assert max(map(len, shown.splitlines())) <= COLUMNS


def test_no_flag_is_taken_for_one_of_torchruns():
    """torchrun reads a flag that begins one of its own as that, also behind the name of our module."""
    from torch.distributed.run import get_args_parser

    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    known = {("bigroc eval certify", "--n")}  # the literature's word; docs/evaluate.md says what to do
    shadowed = {
        (name, flag)
        for name, command in COMMANDS.items()
        for action in command.parser()._actions
        for flag in action.option_strings
        if flag.startswith("--") and any(option.startswith(flag) for option in theirs) and flag not in theirs
    }
    assert {pair for pair in shadowed if pair not in known} == set()
