"""python -m refine --ckpt NAME_OR_FILE --input IMAGES --out PATH --eps 3 [--field value ...]"""

from collections.abc import Sequence

from refine.config import RefineConfig
from robust_models.runtime.command import Command, Summary, run

EXAMPLES = """\
  python -m refine --ckpt cifar10-l2-small --input samples.npz --out refined.npz --eps 3 --grid before_after.png
  python -m refine --ckpt runs/small/classifier.safetensors --input folder/ --out refined/ --eps 1 --targets pseudo
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run(REFINE, argv)


def _refine(config: RefineConfig) -> Summary:
    from refine.pipeline import refine_set

    return refine_set(config)


def _tell(summary: Summary) -> str:
    targets = {"given": "their given labels", "pseudo": "pseudo-labels"}[summary["targets"]]
    lines = [
        f"{summary['out']}: {summary['n']} images refined towards {targets}, {summary['norm']} eps {summary['eps']:g}, "
        f"{summary['steps']} steps, {summary['images_per_s']} images/s",
        f"confidence in the target {summary['confidence_before']:.3f} -> {summary['confidence_after']:.3f}, "
        f"mean {summary['norm']} distance {summary['distance']:.2f}",
    ]
    if summary["skipped"]:
        lines.append(f"{summary['skipped']} unreadable images skipped")
    if summary["grid"]:
        lines.append(f"grid: {summary['grid']}")
    return "\n".join(lines)


REFINE = Command(
    name="python -m refine",
    about="Improve images with a robust classifier (BIGRoC).",
    schema=RefineConfig,
    work=_refine,
    tell=_tell,
    examples=EXAMPLES,
)
