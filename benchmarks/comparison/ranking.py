"""BIGRoC and the methods that need a discriminator, ranked on one GAN at equal passes.

    python -m benchmarks.comparison.ranking --run benchmarks/generators/trained/cgan-pd --data cifar10 --test TEST.npz
        --out runs/ranking [--published] [--classifier]

Cost is counted in forward passes through a network, a backward pass as two. BIGRoC's seven steps are 21; so are 21
proposals of MH-GAN and seven steps of DOT, DDLS and Discriminator Gradient flow, but each of these goes through two
networks, so that they cost twice as much; rejection sampling takes as many as it needs. --published: the papers'
own numbers of steps. --classifier: the robust classifier's logits in the discriminator's place. Every set is refined by
BIGRoC as well.

Distances are to --test in spaces that took no part, less that of the generator's samples, with 95 % intervals of the
bootstrap over images; sets that begin at the same noise (all but DRS and MH-GAN) pair. Sets that are there are not made
again.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from benchmarks.comparison.judged import JudgeFlags, Judges, claim, words
from benchmarks.comparison.rivals import Method, RivalConfig, run_rival
from benchmarks.generators.folder import about_run, read_cost
from refine.config import RefineConfig
from refine.pipeline import refine_set
from robust_models.datasets import load_dataset
from robust_models.runtime.command import Command, Summary, run
from robust_models.runtime.config import STRICT, ImageCount, Positive, resolve, several

RAW: Method = "none"
STEPS = 7
EQUAL: dict[Method, dict[str, Any]] = {
    RAW: {},
    "drs": {},
    "mh-gan": {"proposals": 3 * STEPS},
    "dot": {"steps": STEPS},
    "ddls": {"steps": STEPS},
    "dg-flow": {"steps": STEPS},
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RankingConfig(JudgeFlags):
    """Ranking: of which methods, on which GAN."""

    run: Path = Field(description="the folder of a GAN's training that has ended")
    data: str = Field(description="real images; those of its test split calibrate")
    out: Path = Field(description="the folder of the samples")
    ckpt: str = Field(default="cifar10-l2-small", description="the classifier of BIGRoC")
    num_images: ImageCount = 1000
    eps: Annotated[tuple[Positive, ...], BeforeValidator(several)] = Field(
        default=(1.0, 2.0, 3.0), description="BIGRoC's radii, pixels in [0,1]"
    )
    methods: Annotated[tuple[Method, ...], BeforeValidator(several)] = Field(
        default=tuple(EQUAL), description="with commas; the generator's own samples (none) are there always"
    )
    published: bool = Field(default=False, description="the papers' own numbers of steps, hours for some")
    classifier: bool = Field(default=False, description="the classifier's logits in the discriminator's place")

    @model_validator(mode="after")
    def _consistent(self) -> "RankingConfig":
        if self.data == self.test:
            raise ValueError(f"test: {self.test} calibrates (data), too; give other images")
        return self


def rank(config: RankingConfig) -> Summary:
    """The table. UserError for what does not fit, before any work."""
    about_run(config.run)
    load_dataset(config.data, "test")
    judges = Judges(config, [config.ckpt], config.num_images)
    names = ("run", "data", "ckpt", "num_images", "published", "classifier")
    settings = {name: getattr(config, name) for name in names} | {"training": read_cost(config.run)}
    methods = dict.fromkeys((RAW, *config.methods))
    claim(config.out, settings)
    costs = {name: cost for method in methods for name, cost in _made(method, config)}
    compared, _, _ = judges.compared({name: config.out / f"{name}.npz" for name in costs})
    rows = [
        {
            "method": name,
            "passes": costs[name],
            "distance": [one.distance(name).value for one in compared],
            f"less {RAW}": [asdict(one.difference(name, RAW)) for one in compared],
            "words": [words(one, name, RAW) for one in compared],
        }
        for name in sorted(costs, key=lambda name: compared[0].distance(name).value)
    ]
    measures = [one.measure for one in compared]
    return {"out": str(config.out), "spaces": judges.names, "measures": measures, "rows": rows}


def _made(method: Method, config: RankingConfig) -> list[tuple[str, float]]:
    """A method's samples and the same refined, in the folder: their names and passes."""
    out = config.out / f"{method}.npz"
    flags = {"run": config.run, "method": method, "out": out, "data": config.data, "num_images": config.num_images}
    flags |= {"device": config.device} | ({} if config.published else EQUAL[method])
    if config.classifier and method != RAW:
        flags["classifier"] = config.ckpt
    passes = run_rival(resolve(RivalConfig, flags))["passes per image"]
    cost = sum((2 if network.endswith("backward") else 1) * count for network, count in passes.items())
    sets: list[tuple[str, float]] = [(out.stem, cost)]
    for eps in config.eps:
        refinement = _refinement(config, out, eps)
        if not refinement.out.exists():
            refine_set(refinement)
        sets.append((refinement.out.stem, cost + 3 * STEPS))
    return sets


def _refinement(config: RankingConfig, images: Path, eps: float) -> RefineConfig:
    out = images.with_name(f"{images.stem}+bigroc-{eps:g}.npz")
    values = {"ckpt": config.ckpt, "input": images, "out": out, "eps": eps, "steps": STEPS, "device": config.device}
    return resolve(RefineConfig, values)


def _in_words(summary: Summary) -> str:
    """A table in Markdown, the lowest distance first."""
    spaces = [f"{space} ({measure})" for space, measure in zip(summary["spaces"], summary["measures"], strict=True)]
    lines = [f"| method | passes | {' | '.join(spaces)} |", f"|{'---|' * (2 + len(spaces))}"]
    for row in summary["rows"]:
        told = [f"{value:.4g}: {change}" for value, change in zip(row["distance"], row["words"], strict=True)]
        lines.append(f"| {row['method']} | {row['passes']:.3g} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    return run(Command("python -m benchmarks.comparison.ranking", about, RankingConfig, rank, _in_words))


if __name__ == "__main__":
    sys.exit(main())
