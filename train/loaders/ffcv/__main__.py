import sys

from train.loaders.ffcv.cli import main

if __name__ == "__main__":
    sys.exit(main())
