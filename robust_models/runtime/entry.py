"""How `python -m PACKAGE` begins: the signals first, then a check for shadows, and only then the imports."""

import sys
from importlib import import_module
from typing import NoReturn

from robust_models.runtime.shadowing import warn_of_shadows
from robust_models.runtime.signals import leave_on_signals


def enter(module: str) -> NoReturn:
    """Runs `main()` of the module and ends the process with its status.

    Until the module is imported, which takes the seconds of importing torch, both signals end the process with their
    EXIT_STATUS; from then on runtime.command.run sees to that, also where another door led there.
    """
    leave_on_signals()
    warn_of_shadows()  # before anything that a shadow would break
    sys.exit(import_module(module).main())
