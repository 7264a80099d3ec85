import sys

from robust_models.cli import main

if __name__ == "__main__":
    sys.exit(main())
