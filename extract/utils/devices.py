"""Which device the networks run on."""

from __future__ import annotations

import torch

from extract.utils.distributed import local_rank, world_size


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is CUDA where there is one, else the CPU.

    Of processes that torchrun starts each takes a GPU of its own where none is named by its number.

    Raises ValueError naming the device if it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{local_rank()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
