"""Several processes at one job, as torchrun starts them: who a process is, and the group that they form."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for the others: their shares of the work may differ by hours. One that fails ends all,
by torchrun."""

_teams = count()


def rank() -> int:
    """This process's number among all of the job, 0 … `world_size() - 1`; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """This process's number among those on its machine, by which GPUs are given out; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """Processes of the job; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group(device: str | torch.device) -> Iterator[None]:
    """torch.distributed's default group while the block lasts: NCCL for CUDA, Gloo for the CPU.

    A process alone forms no group, and code inside has to do without collectives then.
    """
    if world_size() == 1:
        yield
        return
    import torch
    from torch import distributed

    device = torch.device(device)
    cuda = device.type == "cuda"
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE, device_id=device if cuda else None)
    try:
        yield
    finally:
        distributed.destroy_process_group()


class Team:
    """The processes of one job, and the little that they tell one another on the way.

    They speak through the table that torchrun keeps for them rather than through collectives, so that a process waits
    for a word and not for all others, and one that ends takes nobody's connection away. All processes make the same
    calls in the same order, except for those of `share`. A process alone never waits.
    """

    def __init__(self) -> None:
        self._table = _table() if world_size() > 1 else None
        self._spoken, self._done = 0, 0

    def told(self, value: T) -> T:
        """Rank 0's value, of JSON's types; the others' own does not matter, and they wait."""
        if self._table is None:
            return value
        key = self._key()
        if rank() == 0:
            self._table.set(key, json.dumps(value))
        else:
            self._wait(key)
        return json.loads(self._table.get(key))

    @contextmanager
    def alike(self) -> Iterator[None]:
        """A block that all go through at the same time. What fails in all is said once, by rank 0: the others say
        what failed when rank 0 has come through, or else are ended while they wait."""
        try:
            yield
        except Exception:
            if rank():
                self.told(None)
            raise
        self.told(None)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """A block that rank 0 goes through before the others: what it makes is there for them."""
        if rank():
            self.told(None)
        yield
        if not rank():
            self.told(None)

    def meet(self) -> None:
        """Returns when all have come here."""
        if self._table is not None:
            key = self._key()
            if self._table.add(f"{key} count", 1) == world_size():
                self._table.set(key, "")
            self._wait(key)

    def share(self, items: Sequence[T]) -> Iterator[T]:
        """The same items in all processes: each goes to whichever asks next, so that none is idle before the end."""
        if self._table is None:
            yield from items
        else:
            while (ticket := self._table.add("ticket", 1)) <= len(items):
                yield items[ticket - 1]

    def done(self, amount: int) -> int:
        """Adds to what all have done so far; returns the sum."""
        self._done += amount
        return self._done if self._table is None else self._table.add("done", amount)

    def _key(self) -> str:
        self._spoken += 1
        return f"word {self._spoken}"

    def _wait(self, key: str) -> None:
        while not self._table.check([key]):  # which Ctrl-C interrupts, unlike the table's own waiting
            time.sleep(0.1)


def _table() -> Store:
    """The table of this job's processes, new for every team and for every restart by torchrun."""
    from torch.distributed import PrefixStore, rendezvous

    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore(f"tailcal team {next(_teams)}", store)
