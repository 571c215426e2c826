"""The features of a training run: all in memory where they fit, else read from the cache step by step."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from extract import RoICache

SHARE_OF_MEMORY = 0.7
"""What the features may take of the memory that is free; the rest is for the network and everybody else."""


class Features:
    """Rows of a cache's features as float32 tensors.

    Attributes:
        in_memory: whether all of them are held in memory, as float16.
    """

    def __init__(self, cache: RoICache, device: torch.device, memory: int | None = None) -> None:
        """`memory` is what may be used, in bytes; by default what the machine has available."""
        self._cache, self._device = cache, device
        self._num_stages = len(cache.stages)
        size = int(cache.offsets[-1]) * math.prod(cache.fields["features"]) * np.dtype(np.float16).itemsize
        self.in_memory = size <= SHARE_OF_MEMORY * (available_memory() if memory is None else memory)
        if self.in_memory:
            # One row per RoI and stage: a plain matrix is what index_select is fast on.
            self._matrix = torch.from_numpy(cache.read("features")).view(-1, math.prod(cache.fields["features"][1:]))

    def gather(self, rows: np.ndarray, stage: int) -> torch.Tensor:
        """(n, prod(D)) float32 on the device: the features of a stage of the packed rows asked for."""
        if self.in_memory:
            picked = self._matrix.index_select(0, torch.from_numpy(rows * self._num_stages + stage))
        else:
            picked = torch.from_numpy(self._cache.take("features", rows)[:, stage]).flatten(1)
        return picked.to(self._device, non_blocking=True).float()


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used without swapping, what a container (cgroup v2) has left respected."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    if (cgroup / "memory.max").exists() and (limit := (cgroup / "memory.max").read_text().strip()).isdigit():
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # The kernel drops files that were read and not used since, so they count as free.
        used = int((cgroup / "memory.current").read_text()) - int(statistics["inactive_file"])
        limits.append(max(int(limit) - used, 0))
    return min(limits)
