"""An image set in, the refined set out: read, target, refine, write, shard by shard.

One process and every rank of a torchrun job take this same path; ranks take shards in turn (passes.py). A run that was
killed goes on with the shards that are not finished (work_folder.py). What an image becomes depends neither on the
batch size nor on the number of ranks (blocks.py).
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from refine.assemble import assemble, publish
from refine.assign import WHOLE_SET, known_targets, label_source
from refine.auto_eps import EpsSearch, as_plain
from refine.balance import parse_prior
from refine.bigroc import bigroc
from refine.blocks import block_size
from refine.config import RefineConfig
from refine.ensemble import together
from refine.outcome import Refinery
from refine.passes import Passes
from refine.pictures import save_pictures
from refine.settings import deciding
from refine.work_folder import Shards, WorkFolder
from robust_models.attacks import PGD
from robust_models.classifier import Precision, RobustClassifier
from robust_models.errors import UserError
from robust_models.folding import folded
from robust_models.images import ImageSet, check_out, open_images
from robust_models.runtime.device import place
from robust_models.runtime.distributed import Ranks, join

EPS = "eps.json"  # in the work folder


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
        classifiers = [place(folded(config.load(name)), device, config.precision) for name in config.ckpts]
        class_names, precision = classifiers[0].class_names, classifiers[0].precision
        refinery = _refinery(config, images, classifiers)
        mode = config.targets or ("pseudo" if images.labels is None else "given")
        targets = known_targets(mode, images, classifiers[0])
        prior = None if config.prior is None else parse_prior(config.prior, class_names)
        search = EpsSearch.open(config, images, device) if config.eps == "auto" and ranks.is_first else None
        if ranks.is_first:
            work.claim(deciding(config, images, device, precision), overwrite=config.overwrite)
        if not ranks.share(work.is_assembled):
            passes = Passes(ranks, work, images, Shards(len(images), config.shard_size), refinery)
            if mode in WHOLE_SET:
                targets = passes.whole_set_targets(mode, prior)
            if config.eps == "auto":
                eps = _chosen_eps(config, search, refinery, targets, work, ranks)
                passes = replace(passes, refinery=replace(refinery, attack=_attack(config, eps)))
            rate = passes.refine(targets, class_names, label_source(mode))
            if ranks.is_first:
                means = assemble(work, images, passes.shards)
                save_pictures(config, passes.refinery, images, work, passes.shards)
                summary = _facts(config, mode, passes.refinery.attack, images, precision) | means | rate
                if search is not None:
                    summary["eps_search"] = work.read_json(EPS) | search.verdict(partial(work.image, passes.shards))
                work.write_summary(summary)
        return publish(work) if ranks.is_first else None


def _refinery(config: RefineConfig, images: ImageSet, classifiers: Sequence[RobustClassifier]) -> Refinery:
    device, image_size = classifiers[0].mean.device, max(classifier.image_size for classifier in classifiers)
    block = min(block_size(device, image_size, config.batch_size), len(images))
    attack = _attack(config, 0.0 if config.eps == "auto" else config.eps)
    return Refinery(together(classifiers), attack, device, block, images.depth, config.uncertain)


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
    refinery: Refinery,
    targets: Tensor | None,
    work: WorkFolder,
    ranks: Ranks,
) -> float:
    """What --eps auto finds, on the first rank; kept for a resumed run."""
    if search is not None and not work.has(EPS):
        work.write_json(EPS, as_plain(search.choose(refinery, partial(_attack, config), targets)))
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


def _facts(config: RefineConfig, mode: str, attack: PGD, images: ImageSet, precision: Precision) -> dict[str, Any]:
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
        "precision": precision,
    }
