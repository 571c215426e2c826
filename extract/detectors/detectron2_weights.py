"""Names of weights that detectron2's own checkpointer converts: Caffe2's, and others that it matches by their ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import c2_model_loading
from torch import Tensor, nn

from extract.utils.errors import one_line


def convert_names(model: nn.Module, checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Returns the checkpoint with detectron2's names, as `DetectionCheckpointer` would load it.

    * files of Detectron and its ImageNet models, as pickles: `blobs`, or arrays with Caffe2's names;
    * files that ask for it by `matching_heuristics`, and pycls's (`model_state`).

    Raises ValueError if detectron2 cannot convert them.
    """
    heuristics = bool(checkpoint.get("matching_heuristics")) or "model_state" in checkpoint
    caffe2 = checkpoint.get("__author__") == "Caffe2" if heuristics else _is_caffe2(checkpoint)
    if not (heuristics or caffe2):
        return checkpoint
    state = next((checkpoint[key] for key in ("model", "model_state", "blobs") if key in checkpoint), checkpoint)
    tensors = {
        key: torch.as_tensor(np.array(value)) if isinstance(value, np.ndarray) else value
        for key, value in state.items()
        if isinstance(value, np.ndarray | Tensor) and not key.endswith(("_momentum", "num_batches_tracked"))
    }
    log = logging.getLogger(c2_model_loading.__name__)
    level = log.level
    log.setLevel(logging.ERROR)  # it logs tables of all names
    try:
        renamed = c2_model_loading.align_and_update_state_dicts(model.state_dict(), tensors, c2_conversion=caffe2)
    except Exception as error:  # it asserts and indexes
        raise ValueError(f"detectron2 cannot convert the names of its weights: {one_line(error)}") from error
    finally:
        log.setLevel(level)
    return {"model": renamed}


def _is_caffe2(checkpoint: Mapping[Any, Any]) -> bool:
    """Returns whether the names are Caffe2's: no dots, and weights end in _w."""
    if "blobs" in checkpoint:
        return True
    names = [key for key, value in checkpoint.items() if isinstance(value, np.ndarray) and isinstance(key, str)]
    return bool(names) and not any("." in name for name in names) and any(name.endswith("_w") for name in names)
