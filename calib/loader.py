"""The steps' RoIs with their features, in order, made ready ahead where that does not take the trainer's own cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from calib.features import Features
from calib.sampler import BiLevelSampler
from extract.utils.prefetch import prefetch

AHEAD = 4
"""Steps ready or being read, besides the one that is trained on."""
THREADS = 2


class Batch(NamedTuple):
    """One stage of one step, as far as it is this process's.

    Attributes:
        inputs: (n, prod(D)) float32 on the device, valid until the next step.
        targets: (n,) int64 on the device.
        num_rois: RoIs of the stage in all processes together.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    num_rois: int


def batches(sampler: BiLevelSampler, features: Features, stages: int, steps: range) -> Iterator[list[Batch]]:
    """Every step's batches, one a stage. Closing the iterator, or an error in it, ends the threads that read ahead."""

    # A step is read for itself, in the order of images: class by class was no faster. Four steps at once were read by
    # one thread up to a third faster, on a small cache whose images they share, but hold four times the memory.
    def load(index: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[int]]:
        drawn = [sampler.step(index, stage) for stage in range(stages)]
        own = [features.is_own(step.rows) for step in drawn]
        halves = features.fetch([step.rows[mask] for step, mask in zip(drawn, own, strict=True)])
        labels = [torch.from_numpy(step.labels[mask]).long() for step, mask in zip(drawn, own, strict=True)]
        return halves, [features.send(values) for values in labels], [len(step.rows) for step in drawn]

    # From the CPU's memory there is nothing to wait for: a thread would only take a core from the matrix products.
    loaded = map(load, steps) if features.immediate else prefetch(load, steps, threads=THREADS, depth=AHEAD)
    for halves, targets, counts in loaded:
        yield [Batch(*parts) for parts in zip(features.widen(halves), targets, counts, strict=True)]
