"""mmcv's compiled operations for deformable convolution, by torchvision's: a part of `benchmarks.mmcv_ext`.

Both frameworks lay out offsets and masks alike: per group and kernel position y, then x; outside of the image is 0.
Letters in shapes: `N` images, `C` and `O` input and output channels, `H` and `W` of the input, `h` and `w` of the
output, `k` kernel positions, `G` deformable groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor


class Geometry(NamedTuple):
    """Options of a deformable convolution, in the order of torchvision's arguments."""

    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    deformable_groups: int


class Gradients(NamedTuple):
    """Gradients of the inputs of a deformable convolution."""

    features: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor


def deform_conv_forward(
    features: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, *,
    im2col_step: int, **options: int,
) -> None:  # fmt: skip
    """Fills `output` (N, O, h, w) from `features` (N, C, H, W), `weight` and `offset` (N, 2 G k, h, w)."""
    output.copy_(_convolve(features, weight, offset, None, None, _geometry(**options)))


def deform_conv_backward_input(
    features: Tensor, offset: Tensor, grad_output: Tensor, grad_features: Tensor, grad_offset: Tensor, weight: Tensor,
    columns: Tensor, *, im2col_step: int, **options: int,
) -> None:  # fmt: skip
    """Fills the gradients of features and offset."""
    gradients = _gradients(grad_output, features, weight, offset, None, None, _geometry(**options))
    grad_features.copy_(gradients.features)
    grad_offset.copy_(gradients.offset)


def deform_conv_backward_parameters(
    features: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor, ones: Tensor, *,
    scale: float, im2col_step: int, **options: int,
) -> None:  # fmt: skip
    """Fills the gradient of the weight, times `scale`."""
    # Only its shape matters: the gradient of the weight does not depend on the weight.
    weight = torch.zeros_like(grad_weight)
    grad_weight.copy_(
        scale * _gradients(grad_output, features, weight, offset, None, None, _geometry(**options)).weight
    )


def modulated_deform_conv_forward(
    features: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
    columns: Tensor, *, kernel_h: int, kernel_w: int, group: int, deformable_group: int, with_bias: bool,
    **options: int,
) -> None:  # fmt: skip
    """Fills `output` as `deform_conv_forward`, with `mask` (N, G k, h, w) and, with `with_bias`, `bias` (O,)."""
    geometry = Geometry(**options, groups=group, deformable_groups=deformable_group)
    output.copy_(_convolve(features, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    features: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, columns: Tensor,
    grad_features: Tensor, grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor,
    grad_output: Tensor, *, kernel_h: int, kernel_w: int, group: int, deformable_group: int, with_bias: bool,
    **options: int,
) -> None:  # fmt: skip
    """Fills the gradients of all inputs."""
    geometry = Geometry(**options, groups=group, deformable_groups=deformable_group)
    gradients = _gradients(grad_output, features, weight, offset, mask, bias if with_bias else None, geometry)
    filled = Gradients(grad_features, grad_weight, grad_offset, grad_mask, grad_bias)
    for name, gradient in gradients._asdict().items():
        if name != "bias" or with_bias:
            getattr(filled, name).copy_(gradient)


OPERATIONS = (
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
)


def _geometry(
    *, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,  # noqa: N803, mmcv's
    group: int, deformable_group: int,
) -> Geometry:  # fmt: skip
    return Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)


def _convolve(
    features: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    inputs = _inputs(features, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*inputs, *geometry, mask is not None)


def _gradients(
    grad_output: Tensor,
    features: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Gradients:
    inputs = _inputs(features, weight, offset, mask, bias)
    grad_output = grad_output.to(inputs[0].dtype)
    return Gradients(*torch.ops.torchvision._deform_conv2d_backward(grad_output, *inputs, *geometry, mask is not None))


def _inputs(features: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None) -> list[Tensor]:
    """Returns the tensors in torchvision's order, at least float32, with fillers for those that are None."""
    mask = features.new_zeros(len(features), 1) if mask is None else mask
    bias = features.new_zeros(len(weight)) if bias is None else bias
    dtype = torch.promote_types(features.dtype, torch.float32)  # half floats are computed in float32
    return [tensor.to(dtype).contiguous() for tensor in (features, weight, offset, mask, bias)]
