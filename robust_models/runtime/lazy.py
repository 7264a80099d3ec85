"""Packages whose public names are imported at first use, so that a command that needs no network starts at once."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, names_of: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A package's module-level `__getattr__` (PEP 562); `names_of` has, by module, the names that come from it.

    The package repeats these imports below `if TYPE_CHECKING`, for type checkers and editors.
    """
    module_of = {name: module for module, names in names_of.items() for name in names}

    def find(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)  # the next time it is found without this function
        return value

    return find
