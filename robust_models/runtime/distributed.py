"""The ranks of a torchrun job: who this process is, and the few things that all must do together."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from robust_models.errors import UserError
from robust_models.runtime.device import pick_device

# A rank that dies is noticed at once, by its closed connection; this bounds the wait for one that hangs or lags.
PATIENCE = timedelta(hours=6)
Value = TypeVar("Value")


class PeerFailed(SystemExit):
    """Another rank met bad input and has said so: this one leaves with the same status and adds nothing."""

    def __init__(self) -> None:
        super().__init__(2)


class PeerLost(SystemExit):
    """Another rank has ended, killed or by an error of its own: this one says so in a line and leaves with status 1."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"error: another rank of this job has ended, and with it this one ({_first_line(reason)})")


@dataclass(frozen=True)
class Ranks:
    """One of `world` processes that share the work; alone (world 1), nothing here costs or waits."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device called `name` (see pick_device); of several CUDA devices, each rank of a machine takes its own."""
        device = pick_device(name)
        if self.world == 1 or device.type != "cuda" or device.index is not None:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"device: rank {self.rank} finds no CUDA device {self.local_rank}, only {torch.cuda.device_count()}; "
                f"give torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        return torch.device("cuda", self.local_rank)

    def barrier(self) -> None:
        """Returns once every rank has come here; PeerFailed where one meanwhile left with a UserError."""
        if self.failing(False):
            raise PeerFailed

    def share(self, value: Value) -> Value:
        """The first rank's value (picklable), on every rank; what the others pass is ignored."""
        self.barrier()
        box = [value]
        if self.world > 1:
            with _peers_needed():
                dist.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, number: int) -> int:
        """The sum of every rank's number, on every rank."""
        return int(self.sum(torch.tensor(number)))

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of every rank's numbers (of one shape, on the CPU), on every rank; `numbers` become it."""
        self.barrier()
        return self._sum(numbers)

    def failing(self, here: bool) -> list[int]:
        """The ranks that have failed, this one among them if `here`.

        Every wait begins with this question, so that a failing rank, by asking it too, lets the others know.
        """
        flags = torch.zeros(self.world, dtype=torch.int64)
        flags[self.rank] = here
        return self._sum(flags).nonzero().flatten().tolist()

    def _sum(self, numbers: Tensor) -> Tensor:
        if self.world > 1:
            with _peers_needed():
                dist.all_reduce(numbers)  # on the CPU: a waiting rank leaves its accelerator alone
        return numbers


@contextmanager
def _peers_needed() -> Iterator[None]:
    """PeerLost where a peer's connection closes while the block waits for it."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(error) from error


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0]


def check_alone(what: str) -> None:
    """UserError where torchrun has started several processes: `what` (of a flag, or a command) runs in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what} runs in one process; call it without torchrun")


def backend() -> str:
    """How ranks send tensors: those on the CPU by gloo, those on CUDA by nccl."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def join() -> Iterator[Ranks]:
    """This process among those that torchrun started, joined for as long as the block lasts; alone without torchrun.

    All ranks leave the block together. Where some raise UserError in it, the lowest of them does, and all others raise
    PeerFailed at their next wait.
    """
    rank, world, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    if world == 1:
        yield Ranks()
        return
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    store = PrefixStore(f"start {_start()}", store)
    dist.init_process_group(backend(), store=store, rank=rank, world_size=world, timeout=PATIENCE)
    ranks = Ranks(rank, world, local_rank)
    try:
        yield ranks
        ranks.barrier()
    except UserError:
        if ranks.failing(True)[0] != rank:
            raise PeerFailed from None  # bad input that every rank sees is reported once
        raise
    finally:
        dist.destroy_process_group()


def _start() -> str:
    """Which start of torchrun's this is: its agent keeps the store, where new ranks would read dead ones' addresses.

    Machines count their restarts each for itself: several of them need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 instead.
    """
    one_machine = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else ""


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


_printed: set[str] = set()


def print_once(lines: Iterable[str]) -> None:
    """Prints each line to stderr, once in a process and by the first of several ranks alone."""
    for line in lines:
        if line not in _printed and os.environ.get("RANK", "0") == "0":
            _printed.add(line)
            print(line, file=sys.stderr)
