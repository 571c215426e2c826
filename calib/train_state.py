"""State of a training run: everything that a step changes and a checkpoint stores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from calib.checkpoint import load_checkpoint, save_checkpoint
from calib.config import Config
from calib.heads import Head
from calib.losses import Loss
from extract.utils.distributed import distributed_data_parallel


@dataclass
class TrainState:
    """Head, optimizer and gradient scaler after `step` steps.

    Attributes:
        head: the head that is trained.
        network: its stages in one module; in DistributedDataParallel under torchrun.
        optimizer: SGD over the head's trainable parameters.
        scaler: gradient scaler, enabled for fp16.
        loss: what is minimised.
        step: number of steps done.
    """

    head: Head
    network: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    loss: Loss
    step: int

    @classmethod
    def load_or_init(cls, head: Head, loss: Loss, config: Config, device: torch.device) -> TrainState:
        """Returns the state of the checkpoint in `config.out` if there is one, else a new state of the head.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(
            trained, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
        # The fused kernel leaves its momentum buffers uninitialised if the scaler skips the first step.
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        step = load_checkpoint(Path(config.out), head, optimizer, scaler) if config.out else 0
        return cls(head, distributed_data_parallel(_AllStages(head), device), optimizer, scaler, loss, step)

    def save(self, out: Path) -> None:
        """Writes the checkpoint to the folder `out`."""
        save_checkpoint(out, self.step, self.head, self.optimizer, self.scaler)


class _AllStages(nn.Module):
    """All stages of a head in one forward call, as DistributedDataParallel requires."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        # Directions and centers of low-rank heads are constants: DistributedDataParallel would send them at every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns logits (n, K+1) per stage from float32 features (n, prod(D)) per stage."""
        return [self.head(inputs, stage) for stage, inputs in enumerate(features)]
