"""Makes robust classifiers."""

from robust_models.runtime.entry import enter

if __name__ == "__main__":
    enter("train.cli")
