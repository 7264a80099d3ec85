"""Ranks: what processes that torchrun starts do together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from robust_models.runtime.distributed import PeerFailed, Ranks, join
from tests.tiny import tiny_pixels

WORLD = 2
PATIENCE_S = 600  # starting Python and torch takes a while where many share the processor


def free_ports(count: int) -> list[str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        return [str(free.getsockname()[1]) for free in sockets]


def start(*arguments, world=WORLD) -> list[subprocess.Popen]:
    """One process per rank, with the environment that torchrun gives."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": free_ports(1)[0]}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each; a rank that waits for ever is killed, and its test fails."""
    try:
        ended = [process.communicate(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]


def test_alone_nothing_waits_and_values_are_ones_own(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join() as ranks:
        assert ranks == Ranks(0, 1, 0)
        assert ranks.is_first
        ranks.barrier()
        assert ranks.share({"a": 1}) == {"a": 1}
        assert ranks.total(5) == 5
        assert ranks.device("cpu") == torch.device("cpu")
    assert not torch.distributed.is_initialized()


TOGETHER = """
import os, sys, time
from robust_models.errors import UserError
from robust_models.runtime.distributed import join

with join() as ranks:
    assert ranks.world == 2 and ranks.is_first == (ranks.rank == 0)
    assert ranks.share(["first", {"x": 1}] if ranks.is_first else None) == ["first", {"x": 1}]
    assert ranks.total(10 + ranks.rank) == 21
    time.sleep(ranks.rank)
    ranks.barrier()
    assert str(ranks.device("cpu")) == "cpu"
waits = {"barrier": lambda: ranks.barrier(), "share": lambda: ranks.share(1), "total": lambda: ranks.total(1)}
for bad in ([0], [1], [0, 1]):
    for name, wait in waits.items():
        os.environ["MASTER_PORT"] = sys.argv.pop()  # the last meeting place may not be cleared yet
        try:
            with join() as ranks:
                if ranks.rank in bad:
                    raise UserError("bad labels")
                wait()
                raise AssertionError("nobody failed")
        except (UserError, SystemExit) as error:
            print(bad, name, type(error).__name__)
"""


def test_ranks_share_and_add_and_where_some_fail_one_tells_and_all_leave():
    first, second = finish(start("-c", TOGETHER, *free_ports(9)))
    assert (first[0], second[0]) == (0, 0), (first, second)
    for (_, out, _), told in ((first, ([0], [0, 1])), (second, ([1],))):
        expected = [
            f"{bad} {name} {'UserError' if bad in told else 'PeerFailed'}"
            for bad in ([0], [1], [0, 1])
            for name in ("barrier", "share", "total")
        ]
        assert out.splitlines() == expected


WAITING = """
import time
from robust_models.runtime.distributed import join
with join() as ranks:
    ranks.barrier()
    print("joined", flush=True)
    if ranks.rank == 1:
        time.sleep(100)
    ranks.barrier()
"""


def test_a_rank_that_is_killed_is_not_waited_for():
    waiting, killed = start("-c", WAITING)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "joined\n"
    killed.send_signal(signal.SIGKILL)
    started = time.monotonic()
    (status, _, error), _ = finish([waiting, killed])
    assert status == 1
    assert re.fullmatch(
        r"error: another rank of this job has ended, and with it this one \(.*(closed|reset).*\)\n", error, re.I
    )
    assert time.monotonic() - started < 60


def test_a_peers_failure_is_an_exit_with_status_2():
    with pytest.raises(SystemExit) as left:
        raise PeerFailed
    assert left.value.code == 2


def test_ranks_split_the_shards_and_make_the_same_bytes_as_one(checkpoint, tmp_path):
    import refine.cli

    np.savez(tmp_path / "in.npz", arr_0=tiny_pixels(20)[0])
    np.savez(tmp_path / "real.npz", arr_0=tiny_pixels(21, seed=2)[0])
    flags = f"--ckpt {checkpoint} --input {tmp_path / 'in.npz'} --eps 1 --steps 2 --shard-size 8 --targets balanced"
    flags += f" --loss logit --stop-energy {tmp_path / 'real.npz'}"
    words = [*flags.split(), "--device", "cpu", "--precision", "fp32"]
    assert refine.cli.main([*words, "--out", str(tmp_path / "one.npz")]) == 0
    first, second = finish(start("-m", "refine", *words, "--out", tmp_path / "two.npz", "--json"))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert json.loads(first[1])["n"] == 20
    assert second[1:] == ("", "")
    assert "rank 0 of 2" in first[2]
    for end in ("", ".manifest.jsonl"):
        one, two = ((tmp_path / f"{name}.npz{end}").read_bytes() for name in ("one", "two"))
        assert one == two
    assert not list(tmp_path.glob("*.work"))
