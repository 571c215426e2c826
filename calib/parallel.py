"""What the processes of one training run tell each other; a process alone tells itself.

Ranks and groups are `extract.distributed`'s. All functions but `is_first` are collective: every process calls them,
in the same order.
"""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from extract.distributed import rank, world_size


def is_first() -> bool:
    """Whether this process writes the files and shows the progress."""
    return rank() == 0


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes."""
    if world_size() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process's values."""
    return _reduced(values, distributed.ReduceOp.SUM)


def smallest(value: int, device: torch.device) -> int:
    """The smallest of every process's value."""
    return int(_reduced(torch.tensor(value, device=device), distributed.ReduceOp.MIN))


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    return smallest(not flag, device) == 0


def wait() -> None:
    """Returns once all processes are here."""
    if world_size() > 1:
        distributed.barrier()


def _reduced(values: torch.Tensor, operation: distributed.ReduceOp) -> torch.Tensor:
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values, operation)
    return values
