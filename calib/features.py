"""The features of a training run: all in memory where they fit, else read from the cache step by step.

Several processes share the rows among them, so that together they hold a cache that many times bigger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from extract.utils.distributed import any_process, local_world_size, rank, world_size
from extract.utils.memory import available_memory

if TYPE_CHECKING:
    from extract import RoICache

SHARE_OF_MEMORY = 0.7
"""What the features may take of the memory that is free; the rest is for the network and everybody else."""
ROWS_AT_ONCE = 4096
"""Read together while features are loaded to memory: 100 MB of pooled ones."""


class Features:
    """This process's rows of a cache's features.

    Attributes:
        in_memory: whether all of them are held in memory, as float16; on the GPU if they fit there.
        immediate: they go from the CPU's memory to the CPU, so there is nothing to wait for.
    """

    def __init__(self, cache: RoICache, device: torch.device, memory: int | None = None) -> None:
        """`memory` is what may be used, in bytes; by default what the machine, or the GPU, has available."""
        self._cache, self._device = cache, device
        self._num_stages = len(cache.stages)
        self._width = math.prod(cache.fields["features"][1:])
        self._buffers: dict[object, torch.Tensor] = {}
        own = np.arange(rank(), int(cache.offsets[-1]), world_size())
        size = len(own) * self._num_stages * self._width * torch.float16.itemsize
        self.in_memory = False
        for place in dict.fromkeys((device, torch.device("cpu"))):
            room = _room(place) if memory is None else memory
            # All or none, since it decides which process takes which rows.
            if not any_process(size > SHARE_OF_MEMORY * room, device):
                self.in_memory, self._matrix = True, self._load(own, place)
                break
        self.immediate = self.in_memory and device.type == "cpu"

    def is_own(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the packed rows (n,) this process has, and no other process has.

        From memory every so-manieth row; streamed every so-manieth image, so that no two processes read one chunk.
        """
        owner = rows if self.in_memory else np.searchsorted(self._cache.offsets, rows, side="right") - 1
        return owner % world_size() == rank()

    def fetch(self, rows: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Per stage (n, prod(D)) float16 on the device: the features of this process's packed rows asked for.

        Unless they are `immediate`, which makes them valid until the next call only, they may be fetched ahead, by
        any thread.
        """
        if not self.in_memory:
            if len(rows) == 1:
                return [self.send(torch.from_numpy(self._cache.take("features", rows[0])).flatten(1))]
            # A row holds all stages, so it is read for all of them at once.
            wanted, where = np.unique(np.concatenate(rows), return_inverse=True)
            taken = torch.from_numpy(self._cache.take("features", wanted)).view(-1, self._num_stages, self._width)
            parts = np.split(where, np.cumsum([len(r) for r in rows])[:-1])
            return [self.send(taken[torch.from_numpy(part), stage]) for stage, part in enumerate(parts)]
        return [self._pick(r // world_size() * self._num_stages + stage, stage) for stage, r in enumerate(rows)]

    def widen(self, halves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What `fetch` gave as float32, valid until the next call."""
        if self._device.type != "cpu":
            return [half.float() for half in halves]
        return [self._buffer(("full", s), len(half), torch.float32).copy_(half) for s, half in enumerate(halves)]

    def send(self, values: torch.Tensor) -> torch.Tensor:
        """The values (CPU) on the device, without waiting for the copy."""
        if self._device.type != "cuda":
            return values.to(self._device)
        with torch.cuda.device(self._device):  # pinning belongs to a device, and each thread has its own current one
            return values.pin_memory().to(self._device, non_blocking=True)

    def _pick(self, index: np.ndarray, stage: int) -> torch.Tensor:
        if self._matrix.device.type != "cpu":
            return self._matrix.index_select(0, self.send(torch.from_numpy(index)))
        if not self.immediate:
            return self.send(self._matrix.index_select(0, torch.from_numpy(index)))
        picked = self._buffer(("half", stage), len(index), torch.float16)
        return torch.index_select(self._matrix, 0, torch.from_numpy(index), out=picked)

    def _buffer(self, name: object, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """(rows, prod(D)) of memory that is used again and again: new pages take longer than what they hold."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows:
            buffer = self._buffers[name] = torch.empty((rows * 5 // 4, self._width), dtype=dtype)
        return buffer[:rows]

    def _load(self, own: np.ndarray, place: torch.device) -> torch.Tensor:
        """One row per RoI and stage: a plain matrix is what index_select is fast on."""
        matrix = torch.empty((len(own), self._num_stages, self._width), dtype=torch.float16, device=place)
        for first in range(0, len(own), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            read = torch.from_numpy(self._cache.take("features", own[part]))
            matrix[part] = read.view(-1, self._num_stages, self._width)
        return matrix.view(-1, self._width)


def _room(place: torch.device) -> float:
    """Bytes that each process of this machine may use."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    return available_memory() / local_world_size()
