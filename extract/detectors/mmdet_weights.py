"""Names of weights that mmcv means to convert but no longer can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def convert_names(model: nn.Module, checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Returns the checkpoint with today's names of the offsets of deformable convolutions.

    In files of mmdetection 1.x, `conv2_offset.weight` is what `conv2.conv_offset.weight` is today. The modules of
    mmcv rename it in their own `_load_from_state_dict`, to which torch and mmengine pass only keys that begin with
    `conv2.`; `load_checkpoint` then leaves the offsets at zero.
    """
    names = {
        f"{name}_offset": f"{name}.conv_offset" for name, m in model.named_modules() if "conv_offset" in m._modules
    }
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping):
        return checkpoint

    def renamed(key: object) -> object:
        module, _, parameter = str(key).rpartition(".")
        module = module.removeprefix("module.")
        return f"{names[module]}.{parameter}" if module in names else key

    if all(renamed(key) == key for key in state):
        return checkpoint  # keeps the state_dict's metadata
    converted = {renamed(key): value for key, value in state.items()}
    return {**checkpoint, "state_dict": converted} if "state_dict" in checkpoint else converted
