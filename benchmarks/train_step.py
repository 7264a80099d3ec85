"""Images per second of one training step with PGD-7 (L2), ours against the loops that others train with.

    python -m benchmarks.train_step [--arch resnet18] [--batch-size 128] [--rounds 5] [--steps 1] [--device auto]
                                    [--precision auto] [--compile] [--ways ours,plain,...]

    ours               train.step.train_step, as `bigroc train` runs it on this device
    plain              as published: NCHW, float32, the attack by loss.backward() on a network in evaluation mode
    advertorch         the plain loop with advertorch's L2PGDAttack
    advertorch_frozen  the same in advertorch's own context that freezes the parameters
    torchattacks       the plain loop with torchattacks' PGDL2, which freezes nothing but asks for input gradients only

All start from the same weights, take the same batch and take turns, so that what else the machine does hits all alike;
ratios are medians over the rounds of ours against the other in that round. What compiling cost is reported apart.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.classifier import NORMALIZERS, Description, RobustClassifier
from robust_models.runtime.config import resolve
from robust_models.runtime.device import decide_precision, pick_device, place
from robust_models.runtime.version import environment
from train.config import TrainConfig
from train.copies import make_twin
from train.step import attack_at, make_optimizer, train_step

EPS, STEP_SIZE, STEPS = 0.5, 0.1, 7
Way = Callable[[], None]


class PlainClassifier(nn.Module):
    """Normaliser and network, in the memory format that everything has by default."""

    def __init__(self, classifier: RobustClassifier) -> None:
        super().__init__()
        self.network, self.mean, self.std = copy.deepcopy(classifier.network), classifier.mean, classifier.std

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def plain_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """PGD as it is usually written: every parameter collects gradients that nobody reads."""
    model.eval()
    delta = torch.zeros_like(x, requires_grad=True)
    for _ in range(STEPS):
        F.cross_entropy(model(x + delta), y).backward()
        assert delta.grad is not None
        with torch.no_grad():
            gradient = delta.grad / delta.grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            moved = delta + STEP_SIZE * gradient
            moved *= (EPS / moved.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1).view(-1, 1, 1, 1)
            delta.copy_((x + moved).clamp(0, 1) - x)
        delta.grad = None
    return (x + delta).detach()


def plain_loop(
    classifier: RobustClassifier, x: Tensor, y: Tensor, attack: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Way:
    model = PlainClassifier(classifier).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        model.eval()
        x_adv = attack(model, x, y)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()

    return step


def advertorch_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from eval.robust.attacks.advertorch import import_advertorch

    attack = import_advertorch().L2PGDAttack(
        model, eps=EPS, nb_iter=STEPS, eps_iter=STEP_SIZE, rand_init=False, clip_min=0.0, clip_max=1.0
    )
    return attack.perturb(x, y)


def frozen_advertorch_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from eval.robust.attacks.advertorch import import_advertorch

    import_advertorch()  # without which the next line fails on today's torch
    from advertorch.context import ctx_noparamgrad_and_eval

    with ctx_noparamgrad_and_eval(model):
        return advertorch_attack(model, x, y)


def torchattacks_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    import torchattacks

    return torchattacks.PGDL2(model, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=False)(x, y)


def ours(classifier: RobustClassifier, x_u8: Tensor, y: Tensor, config: TrainConfig) -> Way:
    precision = decide_precision(config.precision, x_u8.device, "training").precision
    model = place(copy.deepcopy(classifier), x_u8.device, precision)
    twin = make_twin(model, config, x_u8.device)
    stepped = torch.compile(model) if config.compile else model
    optimizer, attack = make_optimizer(model, config), attack_at(config.attack, 0.0)

    def step() -> None:
        model.train()
        if twin:
            twin.refresh()
        train_step(
            stepped,
            optimizer,
            x_u8,
            y,
            config,
            num_classes=10,
            attack=attack,
            step=0,
            progress=0.0,
            victim=twin.model if twin else None,
        )

    return step


def seconds(way: Way, steps: int, device: torch.device) -> float:
    """Of that many steps, to the end of the last one's work on the device."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        way()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", help="resnet18, resnet50, wide_resnet_28_10, ...")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of each way in each round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true", help="of ours")
    parser.add_argument("--ways", default="ours,plain,advertorch,advertorch_frozen,torchattacks")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.manual_seed(0)
    description = Description(args.arch, tuple(map(str, range(10))), args.image_size, normalizer=NORMALIZERS["cifar10"])
    classifier = RobustClassifier.from_description(description).to(device)
    x_u8 = torch.randint(0, 256, (args.batch_size, 3, args.image_size, args.image_size), dtype=torch.uint8).to(device)
    y = torch.randint(0, 10, (args.batch_size,)).to(device)
    values = {
        "out": Path("unused"),
        "precision": args.precision,
        "compile": args.compile,
        "augment": {"crop_padding": 0, "flip": False},
        "attack": {"eps": EPS, "step_size": STEP_SIZE, "steps": STEPS},
        "optimizer": {"lr": 0.01},
    }
    others = {
        "plain": plain_attack,
        "advertorch": advertorch_attack,
        "advertorch_frozen": frozen_advertorch_attack,
        "torchattacks": torchattacks_attack,
    }
    ways: dict[str, Way] = {}
    for name in args.ways.split(","):
        if name == "ours":
            ways[name] = ours(classifier, x_u8, y, resolve(TrainConfig, values, {}))
        else:
            ways[name] = plain_loop(classifier, x_u8.float() / 255, y, others[name])
    first_s = {name: seconds(way, 1, device) for name, way in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            rates[name].append(args.batch_size * args.steps / seconds(way, args.steps, device))

    print(f"{args.arch}, batch {args.batch_size}, {device}, medians of {args.rounds} rounds of {args.steps} steps")
    for name, values in rates.items():
        ratio = statistics.median(mine / other for mine, other in zip(rates.get("ours", values), values, strict=True))
        median = statistics.median(values)
        print(f"  {name:18} {median:10,.1f} images/s   ours is {ratio:5.2f}x   first step {first_s[name]:6.2f} s")
    print(json.dumps({"rates": rates, "first_s": first_s, "environment": environment(), **vars(args)}))


if __name__ == "__main__":
    main()
