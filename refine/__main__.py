import sys

from robust_models.runtime.shadowing import warn_of_shadows
from robust_models.runtime.signals import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()
    warn_of_shadows()  # before anything that a shadow would break

    from refine.cli import main

    sys.exit(main())
