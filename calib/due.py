"""What is due after a step of training: a record, an evaluation, a checkpoint, or the end."""

from __future__ import annotations

from typing import NamedTuple

import torch

from calib.config import Config
from extract.utils.distributed import any_process, world_size

LOG_EVERY = 50
STOP_EVERY = 10
"""Steps from one synchronisation of the interrupt flag to the next under torchrun, which waits 30 s for its
processes."""


class Due(NamedTuple):
    """Whether to log, to evaluate on held-out images, to save a checkpoint, and to stop."""

    log: bool
    evaluate: bool
    save: bool
    stop: bool


def due_after(step: int, config: Config, interrupted: bool) -> Due:
    """Returns what is due after `step` steps. A checkpoint ends an interval of the metrics, as the last step does."""
    is_last = step == config.steps
    save = bool(config.out) and (interrupted or step % config.checkpoint_every == 0)
    evaluate = config.holdout is not None and (is_last or step % config.evaluate_every == 0)
    log = save or is_last or evaluate or step % LOG_EVERY == 0
    return Due(log, evaluate, save and not is_last, interrupted and not is_last)


def any_interrupted(interrupted: bool, step: int, device: torch.device) -> bool:
    """Returns whether any process was interrupted; under torchrun False between two synchronisations."""
    if world_size() == 1:
        return interrupted
    return step % STOP_EVERY == 0 and any_process(interrupted, device)
