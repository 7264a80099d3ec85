"""python -m refine --ckpt NAME_OR_FILE --input IMAGES --out PATH --eps 3 [--field value ...]"""

import json
import sys
from collections.abc import Sequence

import yaml

from refine.config import RefineConfig
from robust_models.runtime.config import OneLineParser, add_config_flags, as_plain, read_recipe, resolve, run_cli

EXAMPLES = """examples:
  python -m refine --ckpt cifar10-l2-small --input samples.npz --out refined.npz --eps 3 --grid before_after.png
  python -m refine --ckpt runs/small/classifier.safetensors --input folder/ --out refined/ --eps 1 --targets pseudo
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run_cli(_main, argv)


def _main(argv: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="python -m refine", description="Improve images with a robust classifier (BIGRoC).", epilog=EXAMPLES
    )
    parser.add_argument("--config", metavar="YAML", help="a recipe; flags override its fields")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_config_flags(parser, RefineConfig)
    flags = vars(parser.parse_args(argv))
    recipe, dry_run, as_json, _ = (flags.pop(name) for name in ("config", "dry_run", "json", "debug"))
    config = resolve(RefineConfig, read_recipe(recipe) if recipe else {}, flags)
    if dry_run:
        yaml.safe_dump(as_plain(config), sys.stdout, sort_keys=False)
        return 0

    from refine.pipeline import refine_set

    summary = refine_set(config)
    if as_json:
        print(json.dumps(summary))
        return 0
    print(
        f"{summary['out']}: {summary['n']} images refined towards {_TARGETS[summary['targets']]}, "
        f"{config.norm} eps {config.eps:g}, {config.steps} steps, {summary['images_per_s']} images/s\n"
        f"confidence in the target {summary['confidence_before']:.3f} -> {summary['confidence_after']:.3f}, "
        f"mean {config.norm} distance {summary['distance']:.2f}"
        + (f"; {summary['skipped']} unreadable images skipped" if summary["skipped"] else "")
        + (f"\ngrid: {config.grid}" if config.grid else "")
    )
    return 0


_TARGETS = {"given": "their given labels", "pseudo": "pseudo-labels"}
