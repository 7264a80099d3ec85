"""An image set in, the refined set out: read, target, refine, write, shard by shard.

One process and every rank of a torchrun job take this same path; ranks take shards in turn. A run that was killed goes
on with the shards that are not finished (work_folder.py). What an image becomes depends neither on the batch size nor
on the number of ranks (refine_batch.py).
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from refine.auto_eps import EpsSearch, as_plain
from refine.balance import parse_prior
from refine.bigroc import bigroc
from refine.config import RefineConfig
from refine.manifest import Means, rows
from refine.network import together
from refine.pictures import save_pictures
from refine.refine_batch import BatchRefiner, block_size
from refine.run_settings import deciding
from refine.targets import TARGETS, WHOLE_SET, assign, known_targets, label_source, logits_name
from refine.work_folder import Shards, WorkFolder, as_line
from robust_models.attacks import PGD
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.folding import folded
from robust_models.images import ImageSet, check_out, open_images, write_images
from robust_models.runtime.device import PrecisionDecision, attack_loop, decide_precision, place
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.files import whole_file

EPS = "eps.json"  # in the work folder
_AT_ONCE = 256  # images, while the shards are assembled


def refine_set(config: RefineConfig) -> dict[str, Any] | None:
    """Refines config.input into config.out and gives the summary: N, targets, means over the manifest, rate.

    None on the ranks of a torchrun job that only helped the first one.
    """
    with join() as ranks:
        work = WorkFolder(config.out)
        _check_place(config, work)
        images = _open(config, ranks)
        check_out(config.out, images)
        device = ranks.device(config.device)
        classifiers = [folded(config.load(name)) for name in config.ckpts]
        precision = decide_precision(config.precision, device, attack_loop(classifiers))
        classifiers = [place(classifier, device, precision.precision) for classifier in classifiers]
        class_names = classifiers[0].class_names
        refiner = _batch_refiner(config, images, classifiers)
        mode = config.targets or ("pseudo" if images.labels is None else "given")
        targets = known_targets(mode, images, classifiers[0])
        prior = None if config.prior is None else parse_prior(config.prior, class_names)
        search = EpsSearch.open(config, images, device) if config.eps == "auto" and ranks.is_first else None
        if ranks.is_first:
            work.claim(deciding(config, images, device, precision.precision), overwrite=config.overwrite)
        if not ranks.share(work.is_assembled):
            passes = Passes(ranks, work, images, Shards(len(images), config.shard_size), refiner)
            if mode in WHOLE_SET:
                targets = passes.whole_set_targets(mode, prior)
            if config.eps == "auto":
                eps = _chosen_eps(config, search, refiner, targets, work, ranks)
                passes = replace(passes, refiner=replace(refiner, attack=_attack(config, eps)))
            rate = passes.refine(targets, class_names, label_source(mode))
            if ranks.is_first:
                means = assemble(work, images, passes.shards, precision)
                save_pictures(config, passes.refiner, images, work, passes.shards)
                summary = _facts(config, mode, passes.refiner.attack, images, precision) | means | rate
                summary["assumptions"] = {
                    name: classifier.description.assumptions
                    for name, classifier in zip(config.ckpts, classifiers, strict=True)
                }
                if search is not None:
                    summary["eps_search"] = work.read_json(EPS) | search.verdict(partial(work.image, passes.shards))
                work.write_summary(summary)
        return publish(work) if ranks.is_first else None


@dataclass(frozen=True)
class Passes:
    """Passes over all shards, of which this rank does its share; each returns once all ranks have done theirs."""

    ranks: Ranks
    work: WorkFolder
    images: ImageSet
    shards: Shards
    refiner: BatchRefiner

    def whole_set_targets(self, mode: str, prior: Tensor | None) -> Tensor:
        """Classes [N] that all logits together decide: a first pass, whose logits the second one takes up."""
        self._predict()
        if self.ranks.is_first and not self.work.has(TARGETS):
            assign(mode, prior, self.work, self.shards)
        self.ranks.barrier()
        return torch.from_numpy(self.work.read_array(TARGETS))

    def _predict(self) -> None:
        """Stores the logits of every shard."""
        for k, bar in self._mine("predict", lambda k: self.work.has(logits_name(k))):
            logits: list[Tensor] = []
            for part in self._blocks(k):
                logits.append(self.refiner.logits(self.images.read(part.start, part.stop)))
                bar.update(part.stop - part.start)
            self.work.write_array(logits_name(k), torch.cat(logits).numpy())
        self.ranks.barrier()

    def refine(self, targets: Tensor | None, class_names: Sequence[str], label_source: str) -> dict[str, float]:
        """Refines and stores every shard, towards targets [N] or (None) the model's guesses; gives the rate."""
        started, done = time.perf_counter(), 0
        for k, bar in self._mine("refine", self.work.has_shard):
            first = self.shards.part(k).start
            seen = self.work.read_array(logits_name(k)) if self.work.has(logits_name(k)) else None
            shape = (self.shards.count(k), 3, *self.images.size)
            with self.work.writing_shard(k, shape, self.images.depth) as add:
                for part in self._blocks(k):
                    pixels, outcome = self.refiner.refine(
                        self.images.read(part.start, part.stop),
                        None if targets is None else targets[part],
                        None if seen is None else torch.from_numpy(seen[part.start - first : part.stop - first]),
                    )
                    names = (self.images.names[i] for i in range(part.start, part.stop))
                    add(pixels, rows(outcome, names, class_names, label_source))
                    bar.update(len(pixels))
            done += self.shards.count(k)
        done = self.ranks.total(done)
        wall_s = time.perf_counter() - started
        return {"wall_s": round(wall_s, 2), "images_per_s": round(done / wall_s, 1)}

    def _mine(self, what: str, is_done: Callable[[int], bool]) -> Iterator[tuple[int, "tqdm[Any]"]]:
        """This rank's shards among those not done, with a bar over its images; the first rank's bar is shown."""
        done = self.ranks.share([is_done(k) for k in range(len(self.shards))])
        mine = [k for k in range(len(self.shards)) if not done[k]][self.ranks.rank :: self.ranks.world]
        total = sum(self.shards.count(k) for k in mine)
        label = what if self.ranks.world == 1 else f"{what} (rank 0 of {self.ranks.world})"
        with tqdm(total=total, unit="img", desc=label, disable=not self.ranks.is_first or not mine) as bar:
            for k in mine:
                yield k, bar

    def _blocks(self, k: int) -> Iterator[slice]:
        part = self.shards.part(k)
        for start in range(part.start, part.stop, self.refiner.block):
            yield slice(start, min(start + self.refiner.block, part.stop))


def assemble(work: WorkFolder, images: ImageSet, shards: Shards, precision: PrecisionDecision) -> dict[str, float]:
    """Builds the set, of the same kind as `images`, and the manifest inside the work folder; gives N and the means."""
    with write_images(work.assembled, like=images, labels=images.labels, class_names=images.class_names) as add:
        for k in range(len(shards)):
            pixels = work.pixels(k)
            for start in range(0, len(pixels), _AT_ONCE):
                add(torch.from_numpy(pixels[start : start + _AT_ONCE].copy()))
    means = Means()
    with whole_file(work.manifest) as partial, partial.open("w", encoding="utf-8") as manifest:
        for k in range(len(shards)):
            for row in work.rows(k):
                means.add(row)
                manifest.write(as_line(row | {"precision": precision.precision}))
    return means.summary()


def publish(work: WorkFolder) -> dict[str, Any]:
    """Moves what assemble() built to its place and removes the work folder; gives the summary.

    Each step is passed over where it is already done, so that a kill here costs nothing either.
    """
    summary = work.read_summary()
    if work.manifest.exists():
        work.manifest.replace(work.manifest_out)
    if work.assembled.exists():
        if work.out.is_dir():
            work.out.rename(work.path / "replaced")
        work.assembled.replace(work.out)
    work.remove()
    return summary


def _batch_refiner(config: RefineConfig, images: ImageSet, classifiers: Sequence[RobustClassifier]) -> BatchRefiner:
    device, image_size = classifiers[0].mean.device, max(classifier.image_size for classifier in classifiers)
    block = min(block_size(device, image_size, config.batch_size), len(images))
    attack = _attack(config, 0.0 if config.eps == "auto" else config.eps)
    return BatchRefiner(together(classifiers), attack, device, block, images.depth, config.uncertain)


def _attack(config: RefineConfig, eps: float) -> PGD:
    return bigroc(
        eps,
        steps=config.steps,
        step_size=config.step_size,
        norm=config.norm,
        center=config.center,
        keep=config.keep,
        loss=config.loss,
    )


def _chosen_eps(
    config: RefineConfig,
    search: EpsSearch | None,
    refiner: BatchRefiner,
    targets: Tensor | None,
    work: WorkFolder,
    ranks: Ranks,
) -> float:
    """What --eps auto finds, on the first rank; kept for a resumed run."""
    if search is not None and not work.has(EPS):
        work.write_json(EPS, as_plain(search.choose(refiner, partial(_attack, config), targets)))
    ranks.barrier()
    return work.read_json(EPS)["eps"]


def _check_place(config: RefineConfig, work: WorkFolder) -> None:
    """Before any work: the output may replace nothing unasked and may not lie in or around the input."""
    source = config.input.resolve()
    for out in (config.out.resolve(), work.path.resolve()):
        if out == source or source in out.parents or out in source.parents:
            raise UserError(f"out: {config.out} overlaps the input {config.input}; choose a place outside it")
    if config.out.exists() and not config.overwrite and not work.is_assembled:
        raise UserError(f"out: {config.out} exists; remove it, choose another place, or pass --overwrite")


def _open(config: RefineConfig, ranks: Ranks) -> ImageSet:
    images = open_images(config.input, on_error=config.on_error)
    for problem in images.skipped if ranks.is_first else ():
        print(f"skipped: {problem}", file=sys.stderr)
    return images


def _facts(
    config: RefineConfig, mode: str, attack: PGD, images: ImageSet, precision: PrecisionDecision
) -> dict[str, Any]:
    return {
        "out": str(config.out),
        "manifest": str(WorkFolder(config.out).manifest_out),
        "grid": None if config.grid is None else str(config.grid),
        "trajectory": None if config.trajectory is None else str(config.trajectory),
        "skipped": len(images.skipped),
        "checkpoint": config.ckpt,
        "targets": mode,
        "norm": config.norm,
        "loss": config.loss,
        "eps": attack.eps,
        "steps": config.steps,
        "step_size": attack.step_size,
        **precision.summary(),
    }
