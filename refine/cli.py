"""bigroc refine --ckpt NAME_OR_FILE --input IMAGES --out PATH --eps 3 [--field value ...]

bigroc refine --generator SPEC ... takes a generator's samples in place of images (refine/generators).
bigroc refine --task NAME ... makes images in other ways (refine/synthesis).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refine.config import RefineConfig
from robust_models.checkpoints.checks import check_names
from robust_models.runtime.command import Command, OneLineParser, Summary, run

EXAMPLES = """\
  bigroc refine photo.jpg --out better.jpg --ckpt cifar10-l2-small --eps 2
  bigroc refine --ckpt cifar10-l2-small --input IMAGES --out refined.npz --eps 3 --grid before_after.png
  bigroc refine --ckpt runs/small/classifier.safetensors --input folder/ --out refined/ --eps 1 --targets pseudo
  bigroc refine --ckpt cifar10-l2-small --input IMAGES --out refined.npz --eps 3 --targets balanced
  bigroc refine --ckpt cifar10-l2-small --generator diffusers:google/ddpm-cifar10-32 --num-images 500 --out new/ --eps 1
  torchrun --nproc-per-node 8 --no-python bigroc refine --ckpt CHECKPOINT.pt --input shards/ --out refined/ --eps 1.5
  bigroc refine --task generate --help
  python -m refine studio                                      (a page; the same as bigroc studio)
The same command run again continues where it stopped. OUT.manifest.jsonl says what became of each image.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line argv (None: sys.argv) and gives its exit status."""
    return run(REFINE, argv)


def _named_input(argv: Sequence[str]) -> Sequence[str]:
    """The words; the first is the input where it is no flag: `bigroc refine photo.jpg --out better.jpg ...`."""
    return ["--input", *argv] if argv and not argv[0].startswith("-") else argv


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


def _refine(config: RefineConfig) -> Summary | None:
    from refine.pipeline import refine_set

    return refine_set(config)


def _format_summary(summary: Summary) -> str:
    lines = ["already done, with the same settings:"] if summary.get("already_done") else []
    level = summary.get("stop_energy")
    until = "" if level is None else f" until an energy of {level:.4g}"
    if summary.get("stop_confidence") is not None:
        until += f" until a confidence of {summary['stop_confidence']:.4g}"
    if summary.get("stop_distance") is not None:
        until += f" until {summary['stop_distance']:.4g} from the mean of the class"
    if summary.get("against"):
        until += f" against {summary['against']} (weight {summary['against_weight']:g})"
    by = "" if summary["loss"] == "ce" else f" by {summary['loss']}"
    lines += [
        f"{summary['out']}: {summary['n']} {_images(summary)} refined towards {_targets(summary)}, "
        f"{summary['norm']} eps {summary['eps']:g}, {summary['steps']} steps{by}{until}, "
        f"{summary['images_per_s']} images/s, "
        f"{summary['precision']} ({summary['precision_reason']})",
        f"confidence in the target {summary['confidence_before']:.3f} -> {summary['confidence_after']:.3f}, "
        f"mean {summary['norm']} distance {summary['distance']:.2f}",
    ]
    if summary.get("generator") is not None:
        lines.append(f"sampled from {summary['generator']}, seed {summary['generator_seed']}")
    if summary.get("guidance") is not None:
        lines.append(f"guided meanwhile: {summary['guidance']}")
    if summary["untouched"]:
        lines.append(f"{summary['untouched']} uncertain images left alone")
    if summary["skipped"]:
        lines.append(f"{summary['skipped']} unreadable images skipped")
    if summary["lossy"]:
        lines.append(
            f"{summary['lossy']} written as JPEG, like the source: quality 95, full colour resolution, not without "
            "loss (--save-as png is)"
        )
    if "eps_search" in summary:
        lines += _eps_search(summary["eps_search"])
    if "steps_search" in summary:
        lines += _steps_search(summary["steps_search"])
    lines += [
        f"{name}: {summary[name]}" for name in ("manifest", "keep_raw", "grid", "trajectory") if summary.get(name)
    ]
    return "\n".join(lines)


def _check(config: RefineConfig) -> None:
    check_names(config)
    if config.judge is not None:
        from refine.auto_judging import check_judges

        check_judges(config.judge)


def _images(summary: Summary) -> str:
    word = "image" if summary["n"] == 1 else "images"
    return word if summary["limit"] is None else f"{word} (the first of {summary['input_images']})"


def _eps_search(found: Summary) -> list[str]:
    lines = [found["table"], *_verdicts(found)]
    if not found["is_gain"] and found["eps"] > 0:
        done = "taken all the same" if found["eps_taken"] else "the images are left as they are (--auto-accept best)"
        high = found["difference_interval"][1]
        why = "a gain to one judge and a loss to another" if high < 0 else "no significant gain"
        lines.append(f"eps {found['eps']:g} is {why}: {done}")
    return lines


def _steps_search(found: Summary) -> list[str]:
    steps, usual = found["steps"], found["usual_steps"]
    if steps == usual:
        return [found["table"], f"fewer steps than {usual} are not sure to keep its gain"]
    lines = [found["table"], *_verdicts(found, f", {steps} steps after {usual}")]
    if not found["is_kept"]:
        done = "taken all the same" if found["steps_taken"] == steps else f"{usual} are taken (--auto-accept best)"
        lines.append(f"{steps} steps are not sure to keep the gain there: {done}")
    return lines


def _verdicts(found: Summary, what: str = "") -> list[str]:
    from refine.auto_judging import LEAST_FOR_VERDICT

    lines = [
        f"on {found['n_held_apart']} images that did not choose, against {found['n_reference']} real ones{what}:",
        *(_verdict(verdict) for verdict in (found, *found["others"])),
    ]
    if found["n_held_apart"] < LEAST_FOR_VERDICT:
        lines.append(f"that is {found['n_held_apart']} images: few for a verdict; --auto-images takes more")
    return lines


def _verdict(found: Summary) -> str:
    from refine.auto_judging import MEASURES

    low, high = found["difference_interval"]
    words = "better" if high < 0 else "worse" if low > 0 else "no significant difference"
    allowed = ""
    if "margin" in found:
        allowed = f"; up to {found['margin']:.3g} keeps the gain"
        words = "kept" if high <= found["margin"] else "not surely kept"
    return (
        f"  in the features of {found['judge']}: {MEASURES[found['measure']]} {found['distance_before']} -> "
        f"{found['distance_after']} (difference {low:+g} to {high:+g} in 95 % of the resamples{allowed}): {words}"
    )


def _targets(summary: Summary) -> str:
    mode = summary["targets"]
    if mode == "class:0" and summary.get("prompt"):
        return repr(summary["prompt"])
    words = {
        "given": "their given labels",
        "pseudo": "pseudo-labels",
        "debiased": "debiased pseudo-labels",
        "balanced": "balanced pseudo-labels",
    }
    return words.get(mode, mode.replace("class:", "class "))


@dataclass(frozen=True)
class RefineCommand(Command):
    """Refines or, with --task NAME, runs one of refine/synthesis, which has flags of its own; `studio`: the page."""

    def __call__(self, argv: Sequence[str]) -> int:
        if argv[:1] == ["studio"]:
            from refine.studio.cli import STUDIO

            return STUDIO(argv[1:])
        task, rest = _split_task(_named_input(argv))
        return super().__call__(rest) if task == "refine" else find_task(task)(rest)

    def add_command_flags(self, parser: OneLineParser) -> None:
        super().add_command_flags(parser)
        parser.command_line.add_argument(
            "--task",
            metavar="NAME",
            default=argparse.SUPPRESS,  # it never comes here: see __call__
            help=f"make images in another way: {', '.join(tasks())}; each has flags of its own, which "
            "--task NAME --help shows (default: refine)",
        )

    def variants(self) -> list[Command]:
        """The commands that --task stands for."""
        return [find_task(name) for name in tasks()]


def tasks() -> list[str]:
    """The names that --task takes beside refine; nothing of them is imported."""
    return sorted(path.stem for path in (Path(__file__).parent / "synthesis" / "tasks").glob("[a-z]*.py"))


def find_task(name: str) -> Command:
    """The command of --task NAME. UserError, with the near miss, where there is none."""
    from refine.synthesis.registry import find_task

    return find_task(name)


REFINE = RefineCommand(
    name="bigroc refine",
    about="Improve images with a robust classifier (BIGRoC).",
    schema=RefineConfig,
    work=_refine,
    format_summary=_format_summary,
    examples=EXAMPLES,
    check=_check,
)
