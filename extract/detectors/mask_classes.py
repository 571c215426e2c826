"""Mask heads that predict some of their classes, and each box once: of one mask per class, a detection needs one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def for_classes(
    module: Module, convolutions: Sequence[nn.Conv2d], labels: Tensor, first: int = 0
) -> tuple[Module, Tensor]:
    """Returns a module that predicts masks of these classes only, and the labels' positions among its outputs.

    With 1,203 classes, the last convolution is a third of a mask head's work, and its output a gigabyte.

    Args:
        module: holds the convolutions; it is not changed, and the copy shares all other parameters.
        convolutions: the last ones of the mask heads of all stages, one output channel per class; none if the masks
            are class-agnostic, or if the heads are of an unknown type, which gives the module itself.
        labels: (D,) classes of the detections.
        first: output channel of class 0.

    Returns:
        The module, and (D,) int64 output channels of the labels; `labels + first` where the module is the same.
    """
    if not convolutions or not len(labels):
        return module, labels + first
    channels, positions = torch.unique(labels + first, return_inverse=True)
    return _with_modules(module, {conv: _with_channels(conv, channels) for conv in convolutions}), positions


def for_boxes(module: Module, heads: Mapping[nn.Module, str], boxes: Tensor) -> Module:
    """Returns a module whose mask heads compute equal boxes once, as detections of several classes have them.

    Args:
        module: holds the heads; it is not changed, and the copy shares all parameters.
        heads: mask heads, and the name of the method of each that takes and returns tensors of one row per box.
        boxes: (D, 4) of the detections.
    """
    distinct, inverse = torch.unique(boxes, dim=0, return_inverse=True)
    if len(distinct) == len(boxes):
        return module
    first = inverse.new_empty(len(distinct))
    first[inverse] = torch.arange(len(boxes), device=inverse.device)
    return _with_modules(module, {head: _on_rows(head, method, first, inverse) for head, method in heads.items()})


def _on_rows(head: nn.Module, method: str, first: Tensor, inverse: Tensor) -> nn.Module:
    """Returns a head whose method computes the rows `first` of its inputs, and returns rows `inverse` of these."""
    compute = getattr(head, method)

    def run(*inputs: Any, **options: Any) -> Any:
        outputs = compute(*(x[first] if isinstance(x, Tensor) else x for x in inputs), **options)
        return outputs[inverse] if isinstance(outputs, Tensor) else [output[inverse] for output in outputs]

    other = copy.copy(head)
    setattr(other, method, run)
    return other


def _with_channels(conv: nn.Conv2d, channels: Tensor) -> nn.Conv2d:
    """Returns the convolution with these of its output channels."""
    part = copy.copy(conv)
    part._parameters = {
        name: None if parameter is None else nn.Parameter(parameter[channels], requires_grad=False)
        for name, parameter in conv._parameters.items()
    }
    part.out_channels = len(channels)
    return part


def _with_modules(module: Module, replacements: Mapping[nn.Module, nn.Module]) -> Module:
    """Returns a copy of the module with some inner modules replaced, which shares the others; itself if it has none."""
    children = {
        name: replacements.get(child) or _with_modules(child, replacements) if child is not None else None
        for name, child in module._modules.items()
    }
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    other = copy.copy(module)
    other._modules = children
    return other
