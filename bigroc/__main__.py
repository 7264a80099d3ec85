import sys

from bigroc.cli import main

if __name__ == "__main__":
    sys.exit(main())
