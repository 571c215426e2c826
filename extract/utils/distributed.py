"""Several processes on one job, as torchrun starts them: ranks, collectives, and a coordinator without collectives."""

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
    from torch import nn
    from torch.distributed import Store

T = TypeVar("T")
TIMEOUT = timedelta(days=30)
"""How long a process waits for the others, whose work may take hours longer; torchrun ends all when one fails."""

_coordinators = count()


def rank() -> int:
    """Returns the rank of this process, 0 … `world_size() - 1`; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Returns the rank of this process on its machine, which selects its GPU; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Returns the number of processes on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def world_size() -> int:
    """Returns the number of processes; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Returns whether this process has rank 0: it writes the files and shows the progress."""
    return rank() == 0


@contextmanager
def process_group(device: str | torch.device) -> Iterator[None]:
    """Initialises torch.distributed for the block: NCCL for CUDA, Gloo for the CPU. A single process forms no group."""
    if world_size() == 1:
        yield
        return
    import torch
    from torch import distributed

    device = torch.device(device)
    cuda = device.type == "cuda"
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT, device_id=device if cuda else None)
    try:
        yield
    finally:
        distributed.destroy_process_group()


# Collectives: every process calls them, in the same order, inside `process_group`. A single process needs no group.


def distributed_data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Returns the network in DistributedDataParallel, which averages gradients over processes."""
    if world_size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum over processes; leaves `values` unchanged."""
    return _all_reduce(values, "SUM")


def all_reduce_min(value: int, device: torch.device) -> int:
    """Returns the minimum over processes."""
    import torch

    return int(_all_reduce(torch.tensor(value, device=device), "MIN"))


def any_process(flag: bool, device: torch.device) -> bool:
    """Returns whether the flag is set in any process."""
    return all_reduce_min(not flag, device) == 0


def barrier() -> None:
    """Returns once all processes have called it."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier()


def _all_reduce(values: torch.Tensor, operation: str) -> torch.Tensor:
    if world_size() == 1:
        return values
    from torch import distributed

    values = values.clone()
    distributed.all_reduce(values, getattr(distributed.ReduceOp, operation))
    return values


class Coordinator:
    """The synchronisation of the processes of one job.

    Uses torchrun's TCPStore, not collectives: a rank waits for one key, and a rank that exits does not break the
    others. All processes make the same calls in the same order, except on `work_queue`. A single process never waits.
    """

    def __init__(self) -> None:
        self._store = _torchrun_store() if world_size() > 1 else None
        self._calls, self._finished = 0, 0

    def broadcast(self, value: T) -> T:
        """Returns rank 0's value, of JSON types, in every process."""
        if self._store is None:
            return value
        key = self._next_key()
        if rank() == 0:
            self._store.set(key, json.dumps(value))
        else:
            _wait(self._store, key)
        return json.loads(self._store.get(key))

    @contextmanager
    def raise_on_main_first(self) -> Iterator[None]:
        """A block that all processes run at the same time; if it fails in all of them, only rank 0 reports the error.

        The other ranks raise their error once rank 0 has left the block without one; otherwise torchrun ends them.
        """
        try:
            yield
        except Exception:
            if rank():
                self.broadcast(None)
            raise
        self.broadcast(None)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """A block that rank 0 runs first; the others run it once rank 0 has left it."""
        if rank():
            self.broadcast(None)
        yield
        if not rank():
            self.broadcast(None)

    def barrier(self) -> None:
        """Returns once all processes have called it."""
        if self._store is not None:
            key = self._next_key()
            if self._store.add(f"{key} count", 1) == world_size():
                self._store.set(key, "")
            _wait(self._store, key)

    def work_queue(self, items: Sequence[T]) -> Iterator[T]:
        """Yields items that no other process gets, in order of demand. All processes pass the same items."""
        if self._store is None:
            yield from items
        else:
            while (ticket := self._store.add("ticket", 1)) <= len(items):
                yield items[ticket - 1]

    def add_finished(self, amount: int) -> int:
        """Adds to the amount of work finished by all processes; returns the sum."""
        self._finished += amount
        return self._finished if self._store is None else self._store.add("finished", amount)

    def _next_key(self) -> str:
        self._calls += 1
        return f"call {self._calls}"


def _wait(store: Store, key: str) -> None:
    while not store.check([key]):  # unlike the store's own wait, Ctrl-C interrupts this one
        time.sleep(0.1)


def _torchrun_store() -> Store:
    """Returns torchrun's store, with a prefix that is new for every coordinator and every restart."""
    from torch.distributed import PrefixStore, rendezvous

    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return PrefixStore(f"tailcal coordinator {next(_coordinators)}", store)
