"""All tasks by name. A module here has a TASK (task.py), or, where it makes no images, a COMMAND of its own."""

import difflib
from importlib import import_module

from refine.synthesis.run import command_of
from robust_models.errors import UserError
from robust_models.runtime.command import Command

TASKS = (
    *("generate", "inpaint", "superres", "translate", "sketch", "paint", "invert"),
    *("features", "explain", "counterfactual", "seeds"),
)


def find_task(name: str) -> Command:
    """`bigroc refine --task NAME`. UserError, with the near miss, where there is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, ("refine", *TASKS), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are refine, {', '.join(TASKS)}"
        raise UserError(f"task: {name!r} is none; {hint}")
    module = import_module(f"refine.synthesis.tasks.{name}")
    return module.COMMAND if hasattr(module, "COMMAND") else command_of(module.TASK)
