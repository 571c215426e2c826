"""The batches of all steps, in order, prefetched by threads where that takes no core from training."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import torch

from calib.features import Features
from calib.sampler import BiLevelSampler
from extract.utils.prefetch import prefetch

PREFETCH_STEPS = 4
"""Steps that are loaded or being loaded besides the one that is trained on."""
THREADS = 2


class Batch(NamedTuple):
    """This process's RoIs of one stage of one step.

    Attributes:
        inputs: (n, prod(D)) float32 on the device, valid until the next step.
        targets: (n,) int64 on the device.
        num_rois: RoIs of the stage in all processes.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    num_rois: int


class _Loaded(NamedTuple):
    """One step per stage: features (n, prod(D)) float16, targets (n,) int64, and the RoIs in all processes."""

    halves: list[torch.Tensor]
    targets: list[torch.Tensor]
    num_rois: list[int]


def batches(
    sampler: BiLevelSampler, features: Features, stages: int, steps: range
) -> Generator[list[Batch], None, None]:
    """Yields one batch per stage for every step. Closing the iterator, or an error in it, ends its threads."""

    # Each step is read on its own, with its rows in image order; reading class by class was no faster. Reading four
    # steps at once was up to a third faster with one thread, on a small cache whose steps share images, but takes four
    # times the memory.
    def load(index: int) -> _Loaded:
        drawn = [sampler.step(index, stage) for stage in range(stages)]
        own = [features.is_own(step.rows) for step in drawn]
        halves = features.fetch([step.rows[mask] for step, mask in zip(drawn, own, strict=True)])
        labels = [torch.from_numpy(step.labels[mask]).long() for step, mask in zip(drawn, own, strict=True)]
        return _Loaded(halves, [features.send(values) for values in labels], [len(step.rows) for step in drawn])

    # Features in the CPU's memory need no waiting: a thread would only take a core from the matrix products.
    loaded = map(load, steps) if features.immediate else prefetch(load, steps, threads=THREADS, depth=PREFETCH_STEPS)
    for step in loaded:
        yield [Batch(*parts) for parts in zip(features.widen(step.halves), step.targets, step.num_rois, strict=True)]
