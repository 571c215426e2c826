"""One training step: losses of one batch per stage, gradients, and the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.config import Config
from calib.loader import Batch
from calib.metrics import Tally
from calib.train_state import TrainState
from extract.utils.distributed import world_size

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_step(state: TrainState, batch: list[Batch], config: Config, tally: Tally) -> None:
    """Trains on one step's RoIs, one batch per stage, and adds losses and correct RoIs to the tally."""
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr_at(state.step)
    losses, logits = _losses(state, batch, config)
    state.scaler.scale(sum(losses[1:], losses[0])).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    for loss, z, stage in zip(losses, logits, batch, strict=True):
        tally.add(loss, state.loss.predictions(z), stage.targets)
    state.step += 1


@torch.no_grad()
def add_losses(state: TrainState, batch: list[Batch], config: Config, tally: Tally) -> None:
    """Adds losses and correct RoIs to the tally, without training."""
    for loss, z, stage in zip(*_losses(state, batch, config), batch, strict=True):
        tally.add(loss, state.loss.predictions(z), stage.targets)


def _losses(state: TrainState, batch: list[Batch], config: Config) -> tuple[list[Tensor], list[Tensor]]:
    """Returns per stage the loss and the logits, (n, K+1) except for losses with outputs of their own."""
    device = batch[0].inputs.device.type
    with torch.autocast(device, AUTOCAST.get(config.precision), config.precision in AUTOCAST):
        logits = state.network([stage.inputs for stage in batch])
    # DDP averages gradients over processes; with this factor the average is the gradient of the mean over all RoIs.
    losses = [
        state.loss(z.float(), stage.targets, state.step) / (stage.num_rois / world_size())
        for z, stage in zip(logits, batch, strict=True)
    ]
    return losses, logits
