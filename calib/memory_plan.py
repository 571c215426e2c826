"""How a training run stays within `memory_limit`: features that do not fit beside the network are read step by step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from calib.config import Config
from calib.loader import PREFETCH_STEPS, THREADS
from calib.sampler import BiLevelSampler
from extract.utils.memory_limit import require_memory, resident_bytes

if TYPE_CHECKING:
    from extract import RoICache

NETWORK_COPIES = 6
"""Sizes of the weights that training takes: weights, gradients, momentum, a temporary, and a checkpoint of both."""
LIBRARIES = 100_000_000
"""Bytes of what torch imports and allocates at the first step; benchmarks.reliability.memory measures them."""
SAMPLED_STEPS, MARGIN = 20, 1.3
"""Steps whose largest number of RoIs, times the margin, is that of all steps."""
HALF, FULL = 2, 4
"""Bytes of a number."""


def memory_for_features(cache: RoICache, config: Config) -> float | None:
    """Returns the bytes that a run's features may take in memory within the config's `memory_limit`; None without one.

    Raises ValueError naming the memory that is needed at least.
    """
    if config.memory_limit is None:
        return None
    width = math.prod(cache.fields["features"][1:])
    rows, hidden = _rows_per_step(cache, config), _largest_hidden(cache, config)
    network = len(cache.stages) * (width * hidden + hidden * hidden + hidden * (cache.num_classes + 1))
    activations = rows * (FULL * width + 6 * FULL * hidden)
    needed = resident_bytes() + LIBRARIES + NETWORK_COPIES * FULL * network + activations
    reading = 2 * HALF * width * rows * (PREFETCH_STEPS + THREADS + 1)
    what = f"heads of up to {network:,} parameters and steps of {rows:,} RoIs that are read from the cache"
    require_memory(config.memory_limit, needed + reading, what)
    return config.memory_limit - needed


def _rows_per_step(cache: RoICache, config: Config) -> int:
    """Returns how many RoIs a step has in all stages, at most."""
    options = config.classes_per_step, config.images_per_class, config.seed, config.rois_per_class
    sampler = BiLevelSampler(cache, *options, sampling=config.sampling, steps=config.steps)
    counts = [sum(len(sampler.step(i, stage).rows) for stage in range(len(cache.stages))) for i in range(SAMPLED_STEPS)]
    return math.ceil(MARGIN * max(counts))


def _largest_hidden(cache: RoICache, config: Config) -> int:
    """Returns the largest width of hidden layers."""
    own = [len(bias) for stage in range(len(cache.stages)) for _, bias in cache.fc_layers(stage)[:-1]]
    return max([config.hidden, *own])
