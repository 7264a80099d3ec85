"""Images per second of one rank and of several, each with one thread: the same training steps on the same batches.

    torchrun --nproc-per-node 2 -m benchmarks.train_ranks [--arch resnet18] [--batch-size 64] [--rounds 5] [--steps 1]

One rank (the others wait) and all ranks take turns in one run, so that what else the machine does hits both alike.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from robust_models.classifier import NORMALIZERS, Description, RobustClassifier
from robust_models.runtime.config import resolve
from robust_models.runtime.device import decide_precision, place
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.version import environment
from train.batch_norm import share_batch_norms
from train.config import TrainConfig
from train.copies import make_twin
from train.parallel import ALONE, part
from train.step import attack_at, make_optimizer, train_step


def stepper(
    classifier: RobustClassifier, config: TrainConfig, ranks: Ranks, device: torch.device
) -> Callable[[], None]:
    """A training step of one of these ranks on its part of a random batch."""
    precision = decide_precision(config.precision, device, "training").precision
    model = place(copy.deepcopy(classifier), device, precision)
    if ranks.world > 1:
        share_batch_norms(model)
    twin, optimizer, attack = (
        make_twin(model, config, device),
        make_optimizer(model, config),
        attack_at(config.attack, 0),
    )
    draws, size = torch.Generator().manual_seed(0), model.image_size
    batch = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 10, (config.batch_size,), generator=draws)
    x_u8, y = part(batch, ranks).to(device), part(labels, ranks).to(device)

    def step() -> None:
        model.train()
        if twin:
            twin.refresh()
        train_step(
            model,
            optimizer,
            x_u8,
            y,
            config,
            num_classes=10,
            attack=attack,
            step=0,
            progress=0.0,
            victim=twin.model if twin else None,
            ranks=ranks,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in each turn of each round")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    values = {"out": Path("unused"), "batch_size": args.batch_size, "optimizer": {"lr": 0.01}}
    config = resolve(TrainConfig, values, {})
    names = tuple(map(str, range(10)))
    torch.manual_seed(0)
    description = Description(args.arch, names, args.image_size, normalizer=NORMALIZERS["cifar10"])
    classifier = RobustClassifier.from_description(description)

    with join() as ranks:
        device = ranks.device(args.device)
        alone, together = (stepper(classifier, config, who, device) for who in (ALONE, ranks))
        turns = {"alone": alone if ranks.is_first else lambda: None, "together": together}
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(1 + args.rounds):
            for name, step in turns.items():
                ranks.barrier()
                start = time.perf_counter()
                for _ in range(args.steps):
                    step()
                ranks.barrier()
                rates[name].append(args.batch_size * args.steps / (time.perf_counter() - start))

    if ranks.is_first:
        rates = {name: values[1:] for name, values in rates.items()}  # the first round warms up
        gain = statistics.median(two / one for one, two in zip(rates["alone"], rates["together"], strict=True))
        medians = [statistics.median(values) for values in rates.values()]
        print(
            f"{args.arch}, batch {args.batch_size}, {device.type}, one thread each, medians of {args.rounds}: 1 rank "
            f"{medians[0]:.1f} images/s, {ranks.world} ranks {medians[1]:.1f} images/s, {gain:.2f}x"
        )
        print(json.dumps({"rates": rates, "world": ranks.world, "environment": environment(), **vars(args)}))


if __name__ == "__main__":
    main()
