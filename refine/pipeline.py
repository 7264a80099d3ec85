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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from refine.auto_eps import EPS, chosen_eps
from refine.auto_judging import Judging
from refine.auto_steps import STEPS_FILE, chosen_steps
from refine.balance import parse_prior
from refine.config import RefineConfig, deciding
from refine.flags import check_pictures_out
from refine.generators.generator_flags import is_guided
from refine.generators.samples import (
    SHARD,
    check_raw,
    open_samples,
    samples_name,
    settings_of,
    store,
    stored,
    write_raw,
)
from refine.manifest import MEASURES, UNTOUCHED, Means, rows
from refine.method import STEPS, ClassMeans, bigroc
from refine.network import beside, together
from refine.pictures import save_pictures
from refine.refine_batch import BatchRefiner, block_size, fitting_block, naming
from refine.stopping import MEDIAN, measured_level, measured_means, open_real, recorded_level
from refine.targets import TARGETS, WHOLE_SET, assign, known_targets, label_source, logits_name, mode_of
from refine.work_folder import Row, Shards, WorkFolder, made_once, my_shards
from robust_models.attacks import PGD
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError, about_field
from robust_models.features import FeatureExtractor
from robust_models.folding import folded
from robust_models.images import ImageGroups, check_apart, check_groups_out, open_image_groups, write_image_groups
from robust_models.images.image_set import ImageSet, SaveAs
from robust_models.images.new_set import check_new_out
from robust_models.runtime.device import PrecisionDecision, attack_loop, decide_precision, place
from robust_models.runtime.distributed import Ranks, join

if TYPE_CHECKING:
    from refine.guidance import Guidance


def refine_set(config: RefineConfig, judges: Sequence[FeatureExtractor] | None = None) -> dict[str, Any] | None:
    """Refines config.input, or what config.generator makes, into config.out.

    Gives the summary: N, targets, means over the manifest, rate. judges: open already, in the place of config.judge's.

    None on the ranks of a torchrun job that only helped the first one.
    """
    with join() as ranks:
        work = WorkFolder(config.out)
        if config.grid or config.trajectory:
            check_pictures_out(config)
        images = None if config.input is None else _open(config, config.input, work, ranks)
        device = ranks.device(config.device)
        classifiers = [folded(config.load(name)) for name in config.ckpts]
        precision = decide_precision(config.precision, device, attack_loop(classifiers))
        classifiers = [place(classifier, device, precision.precision) for classifier in classifiers]
        against = None
        if config.against is not None:
            with about_field("against"):
                weak = folded(config.load(config.against))
                against = beside(place(weak, device, precision.precision), classifiers)
        images = images or _open_samples(config, classifiers, against)
        _check_save_as(config, images)
        settings = deciding(config, images, device, precision.precision)
        if config.generator is not None:
            settings |= settings_of(images)
        if config.keep_raw is not None and ranks.is_first:
            check_raw(config.keep_raw, settings, overwrite=config.overwrite)
        begin = partial(_begin, config, ranks, work, images, classifiers, against, judges)
        make = partial(_refined, settings, classifiers, precision)
        return made_once(ranks, work, settings, overwrite=config.overwrite, begin=begin, make=make)


def _begin(
    config: RefineConfig,
    ranks: Ranks,
    work: WorkFolder,
    images: ImageGroups,
    classifiers: Sequence[RobustClassifier],
    against: nn.Module | None,
    judges: Sequence[FeatureExtractor] | None,
) -> "Begun":
    """All that may still be refused, before anything is written."""
    device, class_names = classifiers[0].mean.device, classifiers[0].class_names
    for field in ("stop_energy", "stop_confidence"):
        if isinstance(level := getattr(config, field), str):
            config = replace(config, **{field: _stop_level(config, field, level, classifiers, ranks)})
    near = None if config.stop_distance is None else _class_means(config, config.stop_distance, classifiers, ranks)
    most = config.shard_size if config.generator is None else min(config.shard_size, SHARD)
    sizes, shards = [classifier.image_size for classifier in classifiers], Shards(images.counts, most)
    attack_at = partial(attack_of, config, against=against, near=near)
    refiner = _batch_refiner(config, classifiers, attack_at(0.0 if config.eps == "auto" else config.eps))
    passes = Passes(ranks, work, images, shards, refiner, sizes, config.ckpt)
    mode = mode_of(config.targets, config.prompt, images.labels)
    total = None if images.skipped else images.total
    targets = known_targets(mode, images, classifiers[0], total=total)
    prior = None if config.prior is None else parse_prior(config.prior, class_names)
    judging = None
    if config.auto_fields and ranks.is_first:
        judging = Judging.open(config, images.one_set(), classifiers, device, judges)
    return Begun(config, passes, attack_at, mode, targets, prior, judging, near)


def _refined(
    settings: dict[str, Any], classifiers: Sequence[RobustClassifier], precision: PrecisionDecision, begun: "Begun"
) -> dict[str, Any] | None:
    """Refines what is not refined yet; on the first rank then assembles all, and gives the summary."""
    config, passes, mode, targets = begun.config, begun.passes, begun.mode, begun.targets
    images, work, ranks = passes.images, passes.work, passes.ranks
    if config.generator is not None and _reads_again(config, mode):
        passes = passes.keeping_samples()
        if config.keep_raw is not None and ranks.is_first:
            write_raw(passes.images, config.keep_raw, settings, overwrite=config.overwrite)
    if mode in WHOLE_SET:
        targets = passes.whole_set_targets(mode, begun.prior)
    passes, searched = _chosen(begun, passes, targets)
    rate = passes.refine(targets, classifiers[0].class_names, label_source(mode))
    if not ranks.is_first:
        return None
    means = assemble(work, images, passes.shards, precision, config.save_as)
    save_pictures(config, passes.refiner, passes.images, work, passes.shards)
    summary = _facts(config, mode, passes.refiner.attack, images, precision) | means | rate
    summary["stop_distance"] = None if begun.near is None else begun.near.level
    summary["assumptions"] = {
        name: classifier.description.assumptions for name, classifier in zip(config.ckpts, classifiers, strict=True)
    }
    return summary | searched


def _chosen(begun: "Begun", passes: "Passes", targets: Tensor | None) -> tuple["Passes", dict[str, Any]]:
    """The passes with what auto finds for eps, then for steps at this eps, and what the summary is to say of it."""
    config, work, ranks, judging = begun.config, passes.work, passes.ranks, begun.judging
    judging = judging and replace(judging, images=passes.images.one_set())
    searched: dict[str, Any] = {}
    if config.eps == "auto":
        eps = chosen_eps(config, judging, passes.refiner_of(0), begun.attack_at, targets, work, ranks)
        passes = replace(passes, refiner=replace(passes.refiner, attack=begun.attack_at(eps)))
        searched["eps_search"] = work.read_json(EPS)
    if config.steps == "auto" and (eps := passes.refiner.attack.eps) > 0:
        attack_at = partial(begun.attack_at, eps)
        steps = chosen_steps(config, judging, passes.refiner_of(0), attack_at, targets, work, ranks)
        passes = replace(passes, refiner=replace(passes.refiner, attack=attack_at(steps)))
        searched["steps_search"] = work.read_json(STEPS_FILE)
    return passes, searched


@dataclass(frozen=True)
class Passes:
    """Passes over all shards, of which this rank does its share; each returns once all ranks have done theirs."""

    ranks: Ranks
    work: WorkFolder
    images: ImageGroups
    shards: Shards
    refiner: BatchRefiner
    seen_at: Sequence[int]  # side of the images that each classifier sees, pixels
    ckpt: str  # as it was given, for messages

    def refiner_of(self, k: int) -> BatchRefiner:
        """The refiner for the images of shard k, in their depth and as many at once as their size allows."""
        images, _ = self.images.at(self.shards.part(k).start)
        block = fitting_block(min(self.refiner.block, len(images)), self.refiner.device, images.size)
        return replace(self.refiner, block=block, depth=images.depth)

    def keeping_samples(self) -> "Passes":
        """The same, for a run that reads a generator's samples again: they are made here and lie in the work folder."""
        for k, bar in my_shards(self.ranks, self.shards, "sample", lambda k: self.work.has(samples_name(k))):
            for count in store(self.images.one_set(), self.shards.part(k), self.work.path / samples_name(k)):
                bar.update(count)
        self.ranks.barrier()
        return replace(self, images=stored(self.images, self.work, self.shards))

    def whole_set_targets(self, mode: str, prior: Tensor | None) -> Tensor:
        """Classes [N] that all logits together decide: a first pass, whose logits the second one takes up."""
        self._predict()
        if self.ranks.is_first and not self.work.has(TARGETS):
            assign(mode, prior, self.work, self.shards, self.images.order)
        self.ranks.barrier()
        return torch.from_numpy(self.work.read_array(TARGETS))

    def _predict(self) -> None:
        """Stores the logits of every shard."""
        for k, bar in my_shards(self.ranks, self.shards, "predict", lambda k: self.work.has(logits_name(k))):
            logits: list[Tensor] = []
            refiner = self.refiner_of(k)
            for part in self._blocks(k, refiner.block):
                logits.append(refiner.logits(self.images.read(part.start, part.stop)))
                bar.update(part.stop - part.start)
            self.work.write_array(logits_name(k), torch.cat(logits).numpy())
        self.ranks.barrier()

    def refine(self, targets: Tensor | None, class_names: Sequence[str], label_source: str) -> dict[str, float]:
        """Refines and stores every shard, towards targets [N] or (None) the model's guesses; gives the rate."""
        started, done, all_names = time.perf_counter(), 0, self.images.names
        for k, bar in my_shards(self.ranks, self.shards, "refine", self.work.has_shard):
            refiner, first = self.refiner_of(k), self.shards.part(k).start
            images, _ = self.images.at(first)
            seen = self.work.read_array(logits_name(k)) if self.work.has(logits_name(k)) else None
            shape = (self.shards.count(k), 3, *images.size)
            with self.work.writing_shard(k, shape, images.depth) as add:
                for part in self._blocks(k, refiner.block):
                    index = self.images.order[part]
                    names = [all_names[int(i)] for i in index]
                    with naming(names, self.ckpt):
                        pixels, outcome = refiner.refine(
                            self.images.read(part.start, part.stop),
                            None if targets is None else targets[index],
                            None if seen is None else torch.from_numpy(seen[part.start - first : part.stop - first]),
                        )
                    add(pixels, rows(outcome, names, class_names, label_source, self._resized(images.size)))
                    bar.update(len(pixels))
            done += self.shards.count(k)
        done = self.ranks.total(done)
        wall_s = time.perf_counter() - started
        return {"wall_s": round(wall_s, 2), "images_per_s": round(done / wall_s, 1)}

    def _blocks(self, k: int, block: int) -> Iterator[slice]:
        part = self.shards.part(k)
        for start in range(part.start, part.stop, block):
            yield slice(start, min(start + block, part.stop))

    def _resized(self, size: tuple[int, int]) -> dict[str, Any]:
        """What the manifest says where a classifier does not see images of `size` (height, width) as they are."""
        if all(size == (side, side) for side in self.seen_at):
            return {}
        return {"size": list(size), "seen_at": [[side, side] for side in self.seen_at]}


@dataclass(frozen=True)
class Begun:
    """A refinement that nothing can be said against any more."""

    config: RefineConfig  # its stop_energy and stop_confidence are numbers, or None
    passes: Passes
    attack_at: Callable[..., PGD]  # (eps, steps=those of the config) -> the steps in a ball of this eps
    mode: str  # of the targets
    targets: Tensor | None  # [N], where they are known
    prior: Tensor | None
    judging: Judging | None  # on the first rank, for what auto is to find
    near: ClassMeans | None  # what stop_distance names


def assemble(
    work: WorkFolder, images: ImageGroups, shards: Shards, precision: PrecisionDecision, save_as: SaveAs
) -> dict[str, Any]:
    """Builds the set, of the same kind as `images`, and the manifest inside the work folder.

    Gives N, the means, and how many images were written with loss.
    """
    work.drop_assembled()
    out, names = work.assembled, images.class_names
    with write_image_groups(out, like=images, labels=images.labels, class_names=names, save_as=save_as) as adds:
        work.copy_pixels(shards, lambda k: adds[images.set_of(shards.part(k).start)])
    means, counts = Means(MEASURES), {"untouched": 0, "lossy": 0}

    def completed() -> Iterator[Row]:
        for i, row in enumerate(means.over(_rows_in_order(work, images, shards))):
            loss = {"lossy": True} if images.is_lossy(out, i) else {}
            counts["untouched"] += row["label_source"] == UNTOUCHED
            counts["lossy"] += bool(loss)
            yield row | {"precision": precision.precision} | loss

    work.write_manifest(completed())
    return {"n": means.n, **means.summary(), **counts}


def _rows_in_order(work: WorkFolder, images: ImageGroups, shards: Shards) -> Iterator[Row]:
    """The manifest rows of all shards, in the order of the whole."""
    if len(images.counts) == 1:
        return (row for k in range(len(shards)) for row in work.rows(k))
    places = [(k, start) for k in range(len(shards)) for start in work.row_starts(k)]
    return (work.row_at(*places[i]) for i in images.order.argsort().tolist())


def _batch_refiner(config: RefineConfig, classifiers: Sequence[RobustClassifier], attack: PGD) -> BatchRefiner:
    device, image_size = classifiers[0].mean.device, max(classifier.image_size for classifier in classifiers)
    block = block_size(device, image_size, config.batch_size)
    return BatchRefiner(together(classifiers), attack, device, block, "uint8", config.uncertain)


def _stop_level(
    config: RefineConfig, field: str, source: str, classifiers: Sequence[RobustClassifier], ranks: Ranks
) -> float:
    """The energy that --stop-energy names, or the confidence; of images, measured by the first rank."""
    if (field, source) == ("stop_energy", MEDIAN):
        return recorded_level([classifier.description for classifier in classifiers])
    real, level = open_real(source, field), 0.0  # the first rank's counts
    if ranks.is_first:
        refiner = _looking_at(real, config, classifiers)
        level = measured_level(real, refiner.logits, refiner.block, field)
    return ranks.share(level)


def _class_means(
    config: RefineConfig, source: str, classifiers: Sequence[RobustClassifier], ranks: Ranks
) -> ClassMeans:
    """Those of the images that --stop-distance names, seen by the first rank."""
    real, near = open_real(source, "stop_distance"), ClassMeans((), 0.0)  # the first rank's counts
    if ranks.is_first:
        refiner = _looking_at(real, config, classifiers)
        near = measured_means(real, refiner.logits_and_features, refiner.block)
    return ranks.share(near)


def _looking_at(real: ImageSet, config: RefineConfig, classifiers: Sequence[RobustClassifier]) -> BatchRefiner:
    """What sees real images as it sees those that it refines."""
    refiner = _batch_refiner(config, classifiers, bigroc(0.0))
    return replace(refiner, block=fitting_block(refiner.block, refiner.device, real.size), depth=real.depth)


def attack_of(
    config: RefineConfig,
    eps: float,
    steps: int | None = None,
    *,
    against: nn.Module | None = None,
    near: ClassMeans | None = None,
) -> PGD:
    """The steps that the config describes, with this eps. Where it stops images, at numbers, or where they are `near`.

    steps: how many; None: as the config says or, where it says auto, the paper's.
    """
    usual = STEPS if config.steps == "auto" else config.steps
    stop, confidence = config.stop_energy, config.stop_confidence
    assert not isinstance(stop, str), "its number is found before"
    assert not isinstance(confidence, str), "its number is found before"
    return bigroc(
        eps,
        steps=usual if steps is None else steps,
        step_size=config.step_size,
        norm=config.norm,
        center=config.center,
        keep=config.keep,
        loss=config.loss,
        stop_energy=stop,
        stop_confidence=confidence,
        stop_distance=near,
        against=against,
        against_weight=config.against_weight,
    )


def _open(config: RefineConfig, source: Path, work: WorkFolder, ranks: Ranks) -> ImageGroups:
    for path in (config.out, work.path):
        check_apart(path, source)
    images = open_image_groups(source, on_error=config.on_error, limit=config.limit)
    for problem in images.skipped if ranks.is_first else ():
        print(f"skipped: {problem}", file=sys.stderr)
    check_groups_out(config.out, images)
    return images


def _open_samples(
    config: RefineConfig, classifiers: Sequence[RobustClassifier], against: nn.Module | None
) -> ImageGroups:
    for out in filter(None, (config.out, config.keep_raw)):
        check_new_out(out, overwrite=True)
    if config.keep_raw is not None:
        check_apart(config.keep_raw, config.out)
    given, suffix = mode_of(config.targets, config.prompt, np.empty(0)) == "given", config.out.suffix.lower()
    return open_samples(
        config,
        suffix,
        classifiers[0].class_names,
        classifiers[0].mean.device,
        trust=config.trust,
        given=given,
        guidance=_guidance(config, classifiers, against) if is_guided(config) else None,
    )


def _guidance(config: RefineConfig, classifiers: Sequence[RobustClassifier], against: nn.Module | None) -> "Guidance":
    """The classifiers inside the sampler, with the norm and the loss that images are refined with afterwards."""
    from refine.guidance import Guidance

    return Guidance(
        classifiers,
        config.guide_eps,
        scale=config.guide_scale,
        steps=config.guide_steps,
        schedule=config.guide_schedule,
        sigmas=(config.guide_to, config.guide_from),
        norm=config.norm,
        loss=config.loss,
        against=against,
        against_weight=config.against_weight,
    )


def _guidance_text(config: RefineConfig) -> str | None:
    if not is_guided(config):
        return None
    if config.guide_eps is None:
        how = f"scale {config.guide_scale:g}"
    else:
        count = f"{config.guide_steps} step{'s' if config.guide_steps > 1 else ''}"
        how = f"{config.norm} eps {config.guide_eps:g} ({config.guide_schedule}), {count}"
    return f"{how}, at noise from {config.guide_from:g} to {config.guide_to:g}"


def _reads_again(config: RefineConfig, mode: str) -> bool:
    """Whether images are read more often than once, when they are refined."""
    return bool(config.auto_fields) or mode in WHOLE_SET or any((config.keep_raw, config.grid, config.trajectory))


def _check_save_as(config: RefineConfig, images: ImageGroups) -> None:
    if config.save_as == "png" and (images.sets[0].kind != "folder" or config.out.suffix.lower() == ".npz"):
        raise UserError(
            f"save_as: png is for folders of image files, but {images.path} is {images.about} and {config.out} is to "
            "be written; leave --save-as out"
        )


def _facts(
    config: RefineConfig, mode: str, attack: PGD, images: ImageGroups, precision: PrecisionDecision
) -> dict[str, Any]:
    return {
        "out": str(config.out),
        "manifest": str(WorkFolder(config.out).manifest_out),
        "grid": None if config.grid is None else str(config.grid),
        "trajectory": None if config.trajectory is None else str(config.trajectory),
        "generator": config.generator,
        "generator_seed": config.generator_seed,
        "guidance": _guidance_text(config),
        "keep_raw": None if config.keep_raw is None else str(config.keep_raw),
        "input_images": images.total,
        "limit": config.limit,
        "skipped": len(images.skipped),
        "checkpoint": config.ckpt,
        "targets": mode,
        "prompt": config.prompt,
        "norm": config.norm,
        "loss": config.loss,
        "stop_energy": config.stop_energy,
        "stop_confidence": config.stop_confidence,
        "against": config.against,
        "against_weight": None if config.against is None else config.against_weight,
        "eps": attack.eps,
        "steps": attack.steps,
        "step_size": attack.step_size,
        **precision.summary(),
    }
