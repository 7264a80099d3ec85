import sys

from robust_models.runtime.shadowing import warn_of_shadows

if __name__ == "__main__":
    warn_of_shadows()  # before anything that a shadow would break

    from robust_models.cli import main

    sys.exit(main())
