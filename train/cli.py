"""python -m train --config NAME.yaml [--out DIR] [--field value ...]"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from robust_models.runtime.config import OneLineParser, add_config_flags, as_plain, read_recipe, resolve, run_cli
from train.config import TrainConfig

EXAMPLES = """examples:
  python -m train --config cifar_l2_small.yaml                    (in runs/cifar_l2_small)
  python -m train --config cifar_l2_small.yaml --data.path train.npz --out runs/eps1 --attack.eps 1.0
  python -m train --config cifar_l2.yaml --data.path cifar10:data --out runs/paper --seed 1
The same command run again continues where it stopped.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run_cli(_main, argv)


def _main(argv: Sequence[str]) -> int:
    parser = OneLineParser(prog="python -m train", description="Adversarial training.", epilog=EXAMPLES)
    parser.add_argument("--config", required=True, metavar="YAML", help="a path, or a recipe shipped in configs/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_config_flags(parser, TrainConfig)
    flags = vars(parser.parse_args(argv))
    recipe, dry_run, as_json, _ = (flags.pop(name) for name in ("config", "dry_run", "json", "debug"))
    config = resolve(TrainConfig, {"out": f"runs/{Path(recipe).stem}", **read_recipe(recipe)}, flags)
    if dry_run:
        yaml.safe_dump(as_plain(config), sys.stdout, sort_keys=False)
        return 0

    from train.loop import train

    summary = train(config)
    if as_json:
        print(json.dumps(summary))
    else:
        scores = ", ".join(f"{name} {value:g}" for name, value in summary["validation"].items())
        print(
            f"{summary['checkpoint']}: {summary['steps']} steps in {summary['wall_s']:.0f} s; "
            f"held out: {scores or 'nothing'}"
        )
    return 0
