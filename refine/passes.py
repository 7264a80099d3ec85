"""Passes over the shards of an image set: what is done is passed over, and ranks take the rest in turn."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from refine.assign import TARGETS, assign, logits_name
from refine.manifest import rows
from refine.outcome import Refinery
from refine.work_folder import Shards, WorkFolder
from robust_models.images import ImageSet
from robust_models.runtime.distributed import Ranks


@dataclass(frozen=True)
class Passes:
    """Passes over all shards, of which this rank does its share; each returns once all ranks have done theirs."""

    ranks: Ranks
    work: WorkFolder
    images: ImageSet
    shards: Shards
    refinery: Refinery

    def whole_set_targets(self, mode: str, prior: Tensor | None) -> Tensor:
        """Classes [N] that all logits together decide: a first pass, whose logits the second one takes up."""
        self._look()
        if self.ranks.is_first and not self.work.has(TARGETS):
            assign(mode, prior, self.work, self.shards)
        self.ranks.barrier()
        return torch.from_numpy(self.work.read_array(TARGETS))

    def _look(self) -> None:
        """Stores the logits of every shard."""
        for k, bar in self._mine("look", lambda k: self.work.has(logits_name(k))):
            logits: list[Tensor] = []
            for part in self._blocks(k):
                logits.append(self.refinery.logits(self.images.read(part.start, part.stop)))
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
                    pixels, outcome = self.refinery.refine(
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
        for start in range(part.start, part.stop, self.refinery.block):
            yield slice(start, min(start + self.refinery.block, part.stop))
