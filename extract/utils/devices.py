"""The device that networks run on."""

from __future__ import annotations

import torch

from extract.utils.distributed import local_rank, world_size


def resolve_device(name: str) -> torch.device:
    """Returns the torch device of a name; "auto" is CUDA if available, else the CPU.

    Under torchrun, "cuda" means `cuda:LOCAL_RANK`.

    Raises ValueError naming the device if it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{local_rank()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
