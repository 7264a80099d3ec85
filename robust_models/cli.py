"""bigroc models inspect FILE | convert FILE OUT | push FILE hf:OWNER/NAME | pull hf:OWNER/NAME | list"""

from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from robust_models.checkpoints import embedded_names
from robust_models.checkpoints.checks import check_inspected
from robust_models.checkpoints.load import format_assumptions
from robust_models.checkpoints.published import published
from robust_models.inspection import ConvertConfig, InspectConfig, check_convert, run_convert, run_inspect
from robust_models.runtime.command import Command, OneOf, Summary, run
from robust_models.runtime.config import STRICT
from robust_models.sharing import PullConfig, PushConfig, check_pull, check_push, run_pull, run_push

EXAMPLES = """\
  bigroc models inspect CHECKPOINT.pt --data cifar10
  bigroc models inspect FOLDER/ --normalize 0.5,0.5
  bigroc models convert CHECKPOINT.pt classifier.safetensors --activation silu
  bigroc models push runs/mine/classifier.safetensors hf:OWNER/NAME --licence mit
  bigroc models pull hf:OWNER/NAME --out mine.safetensors
  bigroc models list
"""
MAX_SHOWN = 8  # entries of a list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `bigroc models`; gives the exit status."""
    return run(MODELS, argv)


def _format_summary(seen: Summary) -> str:
    lines = [
        ("file", seen["file"]),
        ("sha256", seen["sha256"]),
        ("layout", seen["layout"]),
        ("published as", seen["published_as"]),
        ("architecture", _with_source(seen["arch"], seen["arch_from"])),
        ("fits as well", _listed(seen["also_fits"]) and f"{_listed(seen['also_fits'])}; choose with --arch"),
        ("activation", seen["activation"] and _with_source(seen["activation"], seen["activation_from"])),
        ("parameters", f"{seen['parameters']:,}"),
        ("classes", f"{len(seen['classes'])}: {_listed(seen['classes'])}"),
        ("image size", f"{seen['image_size']} px"),
        ("normaliser", _with_source(_normalizer(seen["normalizer"]), seen["normalizer_from"])),
        ("threat model", seen["threat_model"] or "the file names none"),
        ("generation", seen["generation"]),
        ("scores", _pairs(seen["scores"])),
        ("metadata", _pairs(seen["metadata"])),
        ("ignored", _listed(seen["ignored"])),
        ("assumed", format_assumptions(seen["assumptions"])),
    ]
    if "clean_accuracy" in seen:
        lines.append(("clean accuracy", f"{seen['clean_accuracy']:.2%} on N = {seen['n']} of {seen['data']}"))
        lines += [(f"{compared['field']} tried", _comparison(compared)) for compared in seen["readings"]]
    if "out" in seen:
        lines.append(("written", seen["out"]))
    return "\n".join(f"{name:15} {value}" for name, value in lines if value)


def _with_source(value: str, source: str | None) -> str:
    """The value and in brackets where it comes from, without the brackets of that."""
    return f"{value} ({source.partition(' (')[0]})" if source else value


def _normalizer(values: dict[str, Sequence[float]]) -> str:
    mean, std = (", ".join(f"{v:.4g}" for v in values[name]) for name in ("mean", "std"))
    return f"mean {mean}; std {std}"


def _listed(entries: Sequence[str]) -> str:
    more = f", ... {len(entries)} in all" if len(entries) > MAX_SHOWN else ""
    return ", ".join(entries[:MAX_SHOWN]) + more


def _pairs(values: dict[str, object]) -> str:
    return _listed([f"{name} {value}" for name, value in values.items()])


def _comparison(compared: Summary) -> str:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in compared["accuracy"].items())
    ties = [name for name in (compared["best"], *compared["ties"]) if name != compared["chosen"]]
    if len(ties) == len(compared["accuracy"]) - 1:
        return f"{shares}; no significant difference, left as assumed"
    return f"{shares}; taken: {compared['chosen']}" + (
        f" (not significantly different: {_listed(ties)})" if ties else ""
    )


def _format_list(rows: Summary) -> str:
    lines = [(name, "comes with the package") for name in rows["embedded"]]
    for row in rows["published"]:
        trained = row["threat_model"] or "standard training"
        lines.append((row["name"], f"{row['arch']}, {trained}, {row['licence']}, {row['source']}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {about}" for name, about in lines)


def _format_shared(seen: Summary) -> str:
    lines = [f"{seen.get('commit') or seen.get('path') or seen['to']}"]
    return "\n".join([*lines, *(f"  {name:24} {size:>12,} bytes" for name, size in seen["files"].items())])


@dataclass(frozen=True, config=STRICT)
class ListConfig:
    """`list` takes no settings."""


def _list(_: ListConfig) -> Summary:
    rows = [
        {
            "name": model.name,
            "arch": model.arch,
            "threat_model": str(model.threat_model) if model.threat_model else None,
            "licence": model.licence,
            "source": model.source,
            "url": model.url,
            "sha256": model.sha256,
        }
        for model in published().values()
    ]
    return {"embedded": embedded_names(), "published": rows}


COMMANDS = {
    "inspect": Command(
        name="bigroc models inspect",
        about="What a checkpoint is, and with --data whether it is read right.",
        schema=InspectConfig,
        work=run_inspect,
        format_summary=_format_summary,
        examples=EXAMPLES,
        positionals=("file",),
        check=check_inspected,
    ),
    "convert": Command(
        name="bigroc models convert",
        about="Anyone's checkpoint as a .safetensors file of this project, with its metadata.",
        schema=ConvertConfig,
        work=run_convert,
        format_summary=_format_summary,
        examples=EXAMPLES,
        positionals=("file", "out"),
        check=check_convert,
    ),
    "push": Command(
        name="bigroc models push",
        about="A classifier, its config and its card to the Hugging Face hub, or into a folder as it lies there.",
        schema=PushConfig,
        work=run_push,
        format_summary=_format_shared,
        examples=EXAMPLES,
        positionals=("file", "to"),
        check=check_push,
    ),
    "pull": Command(
        name="bigroc models pull",
        about="A checkpoint from the Hugging Face hub into its cache, or to a place of your own.",
        schema=PullConfig,
        work=run_pull,
        format_summary=_format_shared,
        examples=EXAMPLES,
        positionals=("name",),
        check=check_pull,
    ),
    "list": Command(
        name="bigroc models list",
        about="The classifiers that load by name.",
        schema=ListConfig,
        work=_list,
        format_summary=_format_list,
        examples=EXAMPLES,
        takes_recipe=False,
    ),
}

MODELS = OneOf("bigroc models", "Inspect, convert, share and list checkpoints.", "command", COMMANDS, EXAMPLES)
