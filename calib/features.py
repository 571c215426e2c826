"""Features of a training run: in memory if they fit, else read from the cache step by step.

Under torchrun each process holds its share of the rows, so that N processes hold an N times larger cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from extract.utils.distributed import any_process, is_main_process, local_world_size, rank, world_size
from extract.utils.memory import available_memory
from extract.utils.progress import FIRST_LINE, progress_bar

if TYPE_CHECKING:
    from extract import RoICache

MEMORY_SHARE = 0.7
"""Share of the available memory that features may take; the rest is for the network and other processes."""


class Features:
    """This process's rows of a cache's features.

    Attributes:
        device: where features are used.
        in_memory: whether all of them are in memory, as float16; on the GPU if they fit there.
        immediate: whether they are in the CPU's memory and used there, so that fetching them needs no waiting.
    """

    _matrix: torch.Tensor

    def __init__(
        self, cache: RoICache, device: torch.device, memory: float | None = None, rows_at_once: int = 4096
    ) -> None:
        """Loads the features to memory if they fit.

        Args:
            cache: the train cache.
            device: where features are used.
            memory: bytes that the features may take; by default `MEMORY_SHARE` of what is available on the machine,
                or on the GPU.
            rows_at_once: rows read at a time while loading; 4096 rows of LVIS detectors' pooled features take 100 MB.
        """
        self.device = device
        self._cache = cache
        self._num_stages = len(cache.stages)
        self._width = math.prod(cache.fields["features"][1:])
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        own = np.arange(rank(), int(cache.offsets[-1]), world_size())
        size = len(own) * self._num_stages * self._width * torch.float16.itemsize
        self.in_memory = False
        for place in dict.fromkeys((device, torch.device("cpu"))):
            limit = MEMORY_SHARE * _available_bytes(place) if memory is None else memory
            # All processes or none, since `is_own` depends on it.
            if not any_process(size > limit, device):
                self.in_memory, self._matrix = True, self._load(own, place, rows_at_once)
                break
        self.immediate = self.in_memory and device.type == "cpu"

    def is_own(self, rows: np.ndarray) -> np.ndarray:
        """Returns (n,) bool: which of the packed rows (n,) belong to this process and to no other.

        In memory, rows are dealt round-robin over ranks; when streaming, whole images are, so that no two ranks read
        the same chunk.
        """
        owner = rows if self.in_memory else np.searchsorted(self._cache.offsets, rows, side="right") - 1
        return owner % world_size() == rank()

    def fetch(self, rows: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Returns per stage (n, prod(D)) float16 on the device: the features of this process's packed rows (n,).

        Several threads may call it at once, except if `immediate`: the result is then valid until the next call only.
        """
        if self.in_memory:
            return [self._pick(r // world_size() * self._num_stages + stage, stage) for stage, r in enumerate(rows)]
        if len(rows) == 1:
            return [self.send(torch.from_numpy(self._cache.take("features", rows[0])).flatten(1))]
        # A row of the cache holds all stages: read each row once.
        wanted, where = np.unique(np.concatenate(rows), return_inverse=True)
        taken = torch.from_numpy(self._cache.take("features", wanted)).view(-1, self._num_stages, self._width)
        parts = np.split(where, np.cumsum([len(r) for r in rows])[:-1])
        return [self.send(taken[torch.from_numpy(part), stage]) for stage, part in enumerate(parts)]

    def widen(self, halves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Converts the result of `fetch` to float32; valid until the next call."""
        if self.device.type != "cpu":
            return [half.float() for half in halves]
        return [self._buffer(("full", s), len(half), torch.float32).copy_(half) for s, half in enumerate(halves)]

    def send(self, values: torch.Tensor) -> torch.Tensor:
        """Copies a CPU tensor to the device, without waiting for the copy."""
        if self.device.type != "cuda":
            return values.to(self.device)
        with torch.cuda.device(self.device):  # pinned memory belongs to a device; each thread has its own current one
            return values.pin_memory().to(self.device, non_blocking=True)

    def _pick(self, index: np.ndarray, stage: int) -> torch.Tensor:
        """Returns rows of the matrix on the device, for one stage."""
        if self._matrix.device.type != "cpu":
            return self._matrix.index_select(0, self.send(torch.from_numpy(index)))
        if not self.immediate:
            return self.send(self._matrix.index_select(0, torch.from_numpy(index)))
        picked = self._buffer(("half", stage), len(index), torch.float16)
        return torch.index_select(self._matrix, 0, torch.from_numpy(index), out=picked)

    def _buffer(self, key: tuple[str, int], rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns (rows, prod(D)) of a reused buffer: faulting in new pages would take longer than filling them."""
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < rows:
            buffer = self._buffers[key] = torch.empty((rows * 5 // 4, self._width), dtype=dtype)
        return buffer[:rows]

    def _load(self, own: np.ndarray, place: torch.device, rows_at_once: int) -> torch.Tensor:
        """Returns the features as a matrix with one row per RoI and stage: index_select is fast on two axes only."""
        matrix = torch.empty((len(own), self._num_stages, self._width), dtype=torch.float16, device=place)
        blocks = range(0, len(own), rows_at_once)
        shown = is_main_process()
        for first in progress_bar(blocks, desc="read features", unit="block", shown=shown, delay=FIRST_LINE):
            part = slice(first, first + rows_at_once)
            read = torch.from_numpy(self._cache.take("features", own[part]))
            matrix[part] = read.view(-1, self._num_stages, self._width)
        return matrix.view(-1, self._width)


def _available_bytes(place: torch.device) -> float:
    """Returns the memory available to each process of this machine."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    return available_memory() / local_world_size()
