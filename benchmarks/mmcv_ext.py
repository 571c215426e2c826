"""A replacement for the compiled part of mmcv, for tests and Mini-LVIS's recipes.

    from benchmarks import mmcv_ext

    mmcv_ext.install()  # before mmdet is imported

    python -m benchmarks.mmcv_ext extract --detector mmdet …    # runs a command with it

mmdetection needs the compiled `mmcv._ext`, which has no wheels for current PyTorch; `mmcv-lite` lacks it. torchvision
has the operations that a cascade of RoI heads and deformable convolution use, with the same results. mmcv looks up the
others at import, so they exist and raise NotImplementedError when called. With the compiled mmcv installed, `install`
does nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from benchmarks import mmcv_deform_conv

NAME = "mmcv._ext"
AVERAGE = 1  # mmcv's pool_mode


def install() -> None:
    """Makes `mmcv._ext` importable if it is not."""
    if importlib.util.find_spec(NAME) is None:
        module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(NAME, _Loader()))
        module.__loader__.exec_module(module)
        sys.modules[NAME] = module


class _Loader:
    """The loader of the replacement; mmcv and mmengine require a module to have a spec and a loader."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Returns None, for an ordinary empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module with the operations."""
        module.nms = nms
        module.roi_align_forward = roi_align_forward
        module.roi_align_backward = roi_align_backward
        for operation in mmcv_deform_conv.OPERATIONS:
            setattr(module, operation.__name__, operation)
        module.__getattr__ = _missing


def _missing(name: str) -> Callable[..., NoReturn]:
    """Returns an operation that raises NotImplementedError."""
    if name.startswith("__"):
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

    def operation(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"{NAME}.{name}: not among the operations that torchvision replaces; install the compiled mmcv"
        )

    return operation


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Returns indices of the boxes (n, 4) xyxy that NMS keeps, by descending score.

    With `offset` 1, boxes are one pixel longer and wider, as in older versions of mmdetection.
    """
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torch.ops.torchvision.nms(boxes.float(), scores.float(), iou_threshold)


def roi_align_forward(
    features: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, *,
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    """Fills `output` (R, C, h, w) from `features` (N, C, H, W) and `rois` (R, 5): image index and box xyxy."""
    _require_average(pool_mode)
    dtype = torch.promote_types(features.dtype, torch.float32)  # bfloat16 is computed in float32
    pooled = torch.ops.torchvision.roi_align(
        features.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, *,
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    """Fills `grad_input` (N, C, H, W) from `grad_output` (R, C, h, w)."""
    _require_average(pool_mode)
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width, *grad_input.shape,
        sampling_ratio, aligned,
    )  # fmt: skip
    grad_input.copy_(grad)


def _require_average(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise NotImplementedError(f"{NAME}.roi_align: pool_mode {pool_mode} is not supported, only 'avg' is")


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
