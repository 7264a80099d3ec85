"""A small balanced part of a labelled image set, with its images as they are: how the bundled test images were made.

    python -m benchmarks.bundled --data cifar10_test_exact.npz --num-images 500 --out cifar10-test-500.npz

The first images of every class, as many of each, class after class in turn.
"""

import argparse
from pathlib import Path

import torch

from robust_models.datasets import load_dataset
from robust_models.images import write_npz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = load_dataset(args.data, "test")
    num_classes = len(data.class_names)
    of_each = args.num_images // num_classes
    first = torch.stack([(data.y == k).nonzero().flatten()[:of_each] for k in range(num_classes)])
    index = first.T.flatten()
    write_npz(args.out, data.x_u8[index], data.y[index].numpy())
    print(f"{args.out}: {len(index)} images of {num_classes} classes")


if __name__ == "__main__":
    main()
