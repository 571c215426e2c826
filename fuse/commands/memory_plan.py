"""How `fuse` and `fuse sweep` stay within `memory_limit`: fewer threads, and a refusal before work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from extract.cache.reader import RoICache
from extract.utils.memory_limit import require_memory, resident_bytes
from extract.utils.prefetch import available_cpus
from fuse.accumulator import PRUNE_AFTER
from fuse.commands.config import CacheConfig
from fuse.fusion import Fusion

FULL = 4
"""Bytes of a number."""
BOX_BYTES, MASK_BYTES = 150, 350
"""Of a detection in memory, without and with a mask; benchmarks.scale measures 145 without. The others are
measured with benchmarks.reliability.memory."""
KERNELS, REPORT = 150_000_000, 210_000_000
"""Bytes of kernels, which the first run compiles, and of what the report imports and draws, with the 130 MB of
PyTorch's libraries that the end of the process reads."""


def plan_threads(cache: RoICache, config: CacheConfig, fusions: Mapping[str, Fusion], masks: bool) -> int | None:
    """Returns the number of threads that work on images within the config's `memory_limit`; None without a limit.

    `masks` is whether detections have some.

    Raises ValueError naming the memory that is needed at least.
    """
    if config.memory_limit is None:
        return None
    rois = cache.images["roi_count"].to_numpy()
    image = int(rois.max(initial=0)) * _bytes_per_roi(cache, fusions)
    detections = sum(_num_detections(one, rois, cache.num_classes) for one in fusions.values())
    needed = resident_bytes() + KERNELS + detections * (MASK_BYTES if masks else BOX_BYTES) + REPORT
    what = f"up to {detections:,} detections, and images of up to {rois.max(initial=0):,} RoIs"
    require_memory(config.memory_limit, needed + image, what)
    return min(available_cpus(), math.floor((config.memory_limit - needed) / max(image, 1)))


def _bytes_per_roi(cache: RoICache, fusions: Mapping[str, Fusion]) -> int:
    """Returns the memory of a RoI while its image is worked on: as stored and as float32, and scores of all rows."""
    needs_features = any(one.needs_features for one in fusions.values())
    fields = [name for name in cache.fields if needs_features or name != "features"]
    numbers = sum(math.prod(cache.fields[name]) for name in fields)
    return FULL * (2 * numbers + (cache.num_classes + 1) * (2 * len(cache.stages) + len(fusions) + 3))


def _num_detections(fusion: Fusion, rois: np.ndarray, num_classes: int) -> int:
    """Returns how many detections a row keeps, at most; `rois` (N,) are the images' numbers of RoIs.

    Where nothing limits them, at least one of each RoI is counted.
    """
    if fusion.max_detections is not None:
        return int(np.minimum(rois * num_classes, fusion.max_detections).sum())
    per_class = fusion.config.max_detections_per_class
    return int(rois.sum()) if per_class is None else 2 * max(PRUNE_AFTER, num_classes * per_class)
