"""How an extraction stays within `memory_limit`: smaller batches, and blocks that are stored before the next begins."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np

from extract.cache.format import IMAGES_PER_BLOCK
from extract.extractor import BATCHES_AHEAD, Extractor
from extract.rois import RoIs
from extract.utils.memory_limit import peak_bytes, require_memory, reset_peak, resident_bytes, return_freed_memory

log = logging.getLogger(__name__)
STORED_COPIES = 1
"""Sizes of a block that labelling and storing it take, besides its RoIs themselves, and that the C library keeps for
later when they are freed; benchmarks.reliability.memory measures 1.1."""


class Plan(NamedTuple):
    """How images are processed.

    Attributes:
        batch_size: images per forward pass.
        overlap: whether a block is stored while the detector processes the next one.
    """

    batch_size: int
    overlap: bool


class _Sizes(NamedTuple):
    """Bytes of the process as it is, of the forward pass of an image and of its pixels, and of a block's RoIs."""

    process: int
    image: int
    pixels: int
    block: int

    def needed(self, plan: Plan) -> int:
        """Returns the memory that a plan takes at most."""
        forward = plan.batch_size * (self.image + (1 + BATCHES_AHEAD) * self.pixels)
        blocks = 2 if plan.overlap else 1
        return self.process + forward + (blocks + STORED_COPIES) * self.block


def plan_memory(extractor: Extractor) -> Plan:
    """Returns the fastest plan within the config's `memory_limit`; without a limit, that of the config.

    The memory of the forward pass is measured with the largest image.

    Raises ValueError naming the memory that is needed at least.
    """
    config = extractor.config
    plans = [Plan(config.batch_size, True)]
    if config.memory_limit is None:
        return plans[0]
    batch = config.batch_size
    while batch:
        plans.append(Plan(batch, False))
        batch //= 2
    sizes = _measure(extractor)
    least = min(sizes.needed(plan) for plan in plans)
    rois = extractor.max_rois_per_image
    what = f"the detector, an image of the largest size and a block of {IMAGES_PER_BLOCK} images with {rois:,} RoIs"
    require_memory(config.memory_limit, least, what)
    plan = next(plan for plan in plans if sizes.needed(plan) <= config.memory_limit)
    if plan != plans[0]:
        text = "memory_limit: batches of %d images%s"
        log.info(text, plan.batch_size, "" if plan.overlap else ", each block stored before the next begins")
    return plan


def _measure(extractor: Extractor) -> _Sizes:
    areas = extractor.annotations.heights[extractor.positions] * extractor.annotations.widths[extractor.positions]
    largest = int(np.argmax(areas))
    return_freed_memory()  # else the forward pass takes what an earlier one has freed, and seems to need nothing
    before = resident_bytes()
    reset_peak()
    rois = extractor.sample(largest)
    image = max(peak_bytes() - before, 0)
    block = IMAGES_PER_BLOCK * extractor.max_rois_per_image * _bytes_per_roi(rois)
    return _Sizes(before, image, 3 * int(areas[largest]), block)


def _bytes_per_roi(rois: RoIs) -> int:
    """Returns the size of a RoI before it is labelled."""
    arrays = [value for value in vars(rois).values() if hasattr(value, "shape")]
    return sum(math.prod(array.shape[1:]) * array.itemsize for array in arrays)
