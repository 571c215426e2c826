"""Runs the convolutions of a detector in half precision.

Backbone and neck run under autocast. So do the convolutions of the RPN, of the box heads and of the mask heads that
are wider than 1×1. Their weights are cast once, to channels-last. Everything else is computed in float32: anchors,
boxes, NMS, RoIAlign, the RPN's and the mask heads' last layers, and all fully connected layers of the box heads, so
that the stored features give the stored logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from extract.config import Precision
from extract.detectors.base import Detector
from extract.detectors.identity import PRECISION, with_settings
from extract.utils.errors import one_line

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU_FLAGS = {"bf16": {"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"}, "fp16": {"amx_fp16", "asimdhp"}}
"""Flags in /proc/cpuinfo of the instructions with which PyTorch's convolutions are faster than in float32. With
avx512_fp16 alone they are slower."""
CUDA_CAPABILITY = {"bf16": (8, 0), "fp16": (7, 0)}
"""First compute capability with tensor cores for the type."""
CAST_ONCE = ("Conv2d", "ConvTranspose2d", "Linear")
"""Classes whose weights are used as they are: PyTorch's, and the frameworks' of the same names."""


class HalfPrecisionParts(NamedTuple):
    """The parts of a model that may run in half precision.

    Attributes:
        chains: modules that run under autocast as a whole; each feeds the next one of its chain.
        towers: modules of which only convolutions wider than 1×1 do.
    """

    chains: Sequence[Sequence[nn.Module]]
    towers: Sequence[nn.Module]


def set_precision(detector: Detector, precision: Precision) -> None:
    """Makes a float32 detector run in half precision, and records it in the settings of its description.

    The model's weights are replaced: it is neither exported nor changed back.

    Raises ValueError for another precision, or for an adapter without `half_precision_parts`.
    """
    if precision == "fp32":
        return
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}")
    find_parts: Callable[[], HalfPrecisionParts] | None = getattr(detector, "half_precision_parts", None)
    if find_parts is None:
        raise ValueError(f"precision is {precision}: detector {detector.description['name']} runs in fp32 only")
    if lacks_instructions(detector.device, precision):
        logger.warning("precision %s: %s lacks its instructions; fp32 may be faster", precision, detector.device)
    parts = find_parts()
    for chain in parts.chains:
        for module in chain:
            _cast_weights(module, DTYPES[precision])
            _keep_type_in_batch_norm(module)
            _run_under_autocast(module, precision, contiguous_float32=module is chain[-1])
    for tower in parts.towers:
        _reduce_tower(tower, precision)
    detector.description = with_settings(detector.description, **{PRECISION: precision})


def lacks_instructions(device: torch.device, precision: str) -> bool:
    """Returns whether a device is known to have no instructions that make a half precision fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) < CUDA_CAPABILITY[precision]
    flags = cpu_flags() if device.type == "cpu" else frozenset()
    return bool(flags) and not CPU_FLAGS[precision] & flags


def cpu_flags() -> frozenset[str]:
    """Returns the flags in Linux's /proc/cpuinfo; none where it does not exist."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return frozenset(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def _reduce_tower(tower: nn.Module, precision: str) -> None:
    """Lets convolutions wider than 1×1 run under autocast; other modules with weights get their input as float32."""
    for module in _with_weights(tower):
        if type(module).__name__ in CAST_ONCE[:2] and max(module.kernel_size) > 1:  # type: ignore[arg-type]
            _cast_weights(module, DTYPES[precision])
            _run_under_autocast(module, precision, contiguous_float32=False)
        else:
            module.register_forward_pre_hook(_to_float32)


def _with_weights(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the outermost modules that have weights themselves."""
    if module._parameters or module._buffers:
        yield module
    else:
        for child in module.children():
            yield from _with_weights(child)


def _cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts weights and biases of convolutions and linear layers within a module, which may be one itself."""
    for part in module.modules():
        if type(part).__name__ in CAST_ONCE:
            for parameter in part._parameters.values():
                if parameter is not None:
                    parameter.data = _cast(parameter.data, dtype, torch.channels_last)


def _keep_type_in_batch_norm(module: nn.Module) -> None:
    """Lets frozen batch normalisation return the type of its input; torchvision's returns float32, that of its buffers.

    It is computed in float32 by one operation, as in detectron2.
    """
    for part in module.modules():
        if type(part).__name__ == "FrozenBatchNorm2d":
            part.forward = partial(_batch_norm, part)


def _batch_norm(module: Any, x: Tensor) -> Tensor:
    return batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)


def _to_float32(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return _cast(inputs, torch.float32)


def _run_under_autocast(module: nn.Module, precision: str, *, contiguous_float32: bool) -> None:
    forward = partial(_forward, module.forward, type(module).__name__, precision, contiguous_float32)
    module.forward = forward


def _forward(forward: Callable[..., Any], name: str, precision: str, contiguous_float32: bool, *inputs: Any) -> Any:
    """Runs the `forward` of the module of this name under autocast; returns its output as `contiguous_float32` says.

    Raises ValueError if an operation does not exist in this precision, or values exceed its range.
    """
    dtype, device = DTYPES[precision], next(_tensors(inputs)).device
    try:
        with torch.autocast(device.type, dtype):
            output = forward(*_cast(inputs, dtype, torch.channels_last))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"precision {precision}: {name} cannot run in it on {device}: {one_line(error)}") from error
    if precision == "fp16" and not all(bool(tensor.isfinite().all()) for tensor in _tensors(output)):
        raise ValueError(f"precision fp16: values of {name} exceed its range; use bf16")
    return _cast(output, torch.float32, torch.contiguous_format) if contiguous_float32 else output


def _cast(value: Any, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format) -> Any:
    """Casts float tensors, also in dicts, lists and tuples; `layout` is that of tensors with four axes."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype, memory_format=layout if value.ndim == 4 else torch.preserve_format)
    if isinstance(value, dict):
        return type(value)((key, _cast(item, dtype, layout)) for key, item in value.items())
    return type(value)(_cast(item, dtype, layout) for item in value) if type(value) in (list, tuple) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of a module's output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
