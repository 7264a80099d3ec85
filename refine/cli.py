"""bigroc refine --ckpt NAME_OR_FILE --input IMAGES --out PATH --eps 3 [--field value ...]

bigroc refine --task NAME ... makes images in other ways (refine/synthesis).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from refine.config import RefineConfig
from robust_models.runtime.command import Command, Summary, run

EXAMPLES = """\
  bigroc refine --ckpt cifar10-l2-small --input samples.npz --out refined.npz --eps 3 --grid before_after.png
  bigroc refine --ckpt runs/small/classifier.safetensors --input folder/ --out refined/ --eps 1 --targets pseudo
  bigroc refine --ckpt cifar10-l2-small --input samples.npz --out refined.npz --eps 3 --targets balanced
  torchrun --nproc-per-node 8 --no-python bigroc refine --ckpt robust.pt --input shards/ --out refined/ --eps 1.5
  bigroc refine --task generate|inpaint|superres|translate|sketch|paint|invert --help
The same command run again continues where it stopped. OUT.manifest.jsonl says what became of each image.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line argv (None: sys.argv) and gives its exit status."""
    return run(REFINE_OR_TASK, argv)


def _split_task(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The last --task in argv ("refine" where there is none), and argv without any."""
    task, rest = "refine", []
    words = iter(argv)
    for word in words:
        if word == "--task":
            task = next(words, "")
        elif word.startswith("--task="):
            task = word.removeprefix("--task=")
        else:
            rest.append(word)
    return task, rest


def _refine(config: RefineConfig) -> Summary:
    from refine.pipeline import refine_set

    summary = refine_set(config)
    if summary is None:
        sys.exit(0)  # a rank that has helped; the first one prints the summary
    return summary


def _format_summary(summary: Summary) -> str:
    lines = [
        f"{summary['out']}: {summary['n']} images refined towards {_targets(summary['targets'])}, {summary['norm']} "
        f"eps {summary['eps']:g}, {summary['steps']} steps, {summary['images_per_s']} images/s, "
        f"{summary['precision']} ({summary['precision_reason']})",
        f"confidence in the target {summary['confidence_before']:.3f} -> {summary['confidence_after']:.3f}, "
        f"mean {summary['norm']} distance {summary['distance']:.2f}",
    ]
    if summary["untouched"]:
        lines.append(f"{summary['untouched']} uncertain images left alone")
    if summary["skipped"]:
        lines.append(f"{summary['skipped']} unreadable images skipped")
    if "eps_search" in summary:
        lines += _search(summary["eps_search"])
    lines += [f"{name}: {summary[name]}" for name in ("manifest", "grid", "trajectory") if summary[name]]
    return "\n".join(lines)


def _search(found: Summary) -> list[str]:
    return [
        found["table"],
        f"on {found['n_held_apart']} images that did not choose, against {found['n_reference']} real ones, in the "
        f"features of {found['judge']}: Frechet distance {found['frechet_before']} -> {found['frechet_after']}",
    ]


def _targets(mode: str) -> str:
    words = {
        "given": "their given labels",
        "pseudo": "pseudo-labels",
        "debiased": "debiased pseudo-labels",
        "balanced": "balanced pseudo-labels",
    }
    return words.get(mode, mode.replace("class:", "class "))


REFINE = Command(
    name="bigroc refine",
    about="Improve images with a robust classifier (BIGRoC).",
    schema=RefineConfig,
    work=_refine,
    format_summary=_format_summary,
    examples=EXAMPLES,
)


@dataclass(frozen=True)
class RefineOrTask:
    """Refines or, with --task NAME, runs one of refine/synthesis, which has flags of its own."""

    about: str = REFINE.about

    def __call__(self, argv: Sequence[str]) -> int:
        task, rest = _split_task(argv)
        if task == "refine":
            return REFINE(rest)
        from refine.synthesis.registry import find_task

        return find_task(task)(rest)


REFINE_OR_TASK = RefineOrTask()
