"""Deformable convolution in place of compiled operations: mmcv's and detectron2's layers against a plain reference."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, grid_sample

from benchmarks import mmcv_ext

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the frameworks at import
    pytest.importorskip("mmcv")
    mmcv_ext.install()
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d


def reference(
    features: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """The definition, from grid_sample: each kernel position reads the features at its shifted place, 0 outside.

    Source: Dai et al., "Deformable Convolutional Networks" (ICCV 2017), equation 2; the mask is equation 1 of Zhu et
    al., "Deformable ConvNets v2" (CVPR 2019).
    """
    kernel_h, kernel_w = weight.shape[-2:]
    images, channels, height, width = features.shape
    out_h, out_w = offset.shape[-2:]
    deform_groups = offset.shape[1] // (2 * kernel_h * kernel_w)
    offset = offset.reshape(images, deform_groups, kernel_h, kernel_w, 2, out_h, out_w)
    rows, columns = torch.meshgrid(torch.arange(out_h), torch.arange(out_w), indexing="ij")
    sampled = features.new_zeros(images, channels, kernel_h, kernel_w, out_h, out_w)
    for group, own in enumerate(torch.arange(channels).chunk(deform_groups)):
        for i in range(kernel_h):
            for j in range(kernel_w):
                y = rows * stride - padding + i * dilation + offset[:, group, i, j, 0]
                x = columns * stride - padding + j * dilation + offset[:, group, i, j, 1]
                grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
                values = grid_sample(features[:, own], grid, padding_mode="zeros", align_corners=True)
                if mask is not None:
                    values = (
                        values
                        * mask.reshape(images, deform_groups, kernel_h, kernel_w, out_h, out_w)[:, group, None, i, j]
                    )
                sampled[:, own, i, j] = values
    groups = channels // weight.shape[1]
    parts = zip(sampled.chunk(groups, 1), weight.chunk(groups), strict=True)
    output = torch.cat([torch.einsum("ncijhw,ocij->nohw", *part) for part in parts], 1)
    return output if bias is None else output + bias[:, None, None]


def make_inputs(groups: int = 1, deform_groups: int = 1, stride: int = 1, dtype: torch.dtype = torch.float64):
    """Features of two images, offsets of some pixels that also lead outside, weight, mask and bias."""
    rng = torch.Generator().manual_seed(0)
    size = (7 - 1) // stride + 1, (6 - 1) // stride + 1
    shapes = {
        "features": (2, 8, 7, 6),
        "offset": (2, 18 * deform_groups, *size),
        "weight": (4, 8 // groups, 3, 3),
        "mask": (2, 9 * deform_groups, *size),
        "bias": (4,),
    }
    values = {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}
    values["offset"] *= 2
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("groups", "deform_groups", "stride"), [(1, 1, 1), (4, 1, 2), (2, 4, 1)])
def test_mmcvs_operations_equal_the_definition(groups, deform_groups, stride, modulated):
    inputs = make_inputs(groups, deform_groups, stride)
    features, offset, weight, mask, bias = inputs.values()
    if modulated:
        found = modulated_deform_conv2d(features, offset, mask, weight, bias, stride, 1, 1, groups, deform_groups)
        expected = reference(*inputs.values(), stride=stride, padding=1)
    else:
        found = deform_conv2d(features, offset, weight, stride, 1, 1, groups, deform_groups)
        expected = reference(features, offset, weight, stride=stride, padding=1)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    differentiated = list(inputs.values())[: 5 if modulated else 3]
    gradients = (torch.autograd.grad(result, differentiated, cotangent) for result in (found, expected))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


def test_without_offsets_it_is_a_plain_convolution():
    features, offset, weight, mask, _ = make_inputs(stride=2, dtype=torch.float32).values()
    plain = conv2d(features, weight, stride=2, padding=1)
    zero = torch.zeros_like(offset)
    torch.testing.assert_close(deform_conv2d(features, zero, weight, 2, 1), plain)
    modulated = modulated_deform_conv2d(features, zero, torch.full_like(mask, 0.5), weight, None, 2, 1)
    torch.testing.assert_close(modulated, plain / 2)


def test_half_floats_are_computed_in_float32():
    features, offset, weight, *_ = (value.detach() for value in make_inputs(dtype=torch.bfloat16).values())
    found = deform_conv2d(features, offset, weight, 1, 1)
    expected = reference(features.float(), offset.float(), weight.float(), padding=1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16())


def test_layers_of_detectron2_equal_the_definition():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the framework at import
        pytest.importorskip("detectron2.modeling")
        from tests.frameworks.detectron2 import deformable_layers
    layers = deformable_layers()
    features, offset, weight, mask, bias = (value.detach() for value in make_inputs(2, 2, dtype=torch.float32).values())
    plain = layers.DeformConv(8, 4, 3, padding=1, groups=2, deformable_groups=2)
    modulated = layers.ModulatedDeformConv(8, 4, 3, padding=1, groups=2, deformable_groups=2)
    plain.weight, modulated.weight, modulated.bias = (nn.Parameter(value) for value in (weight, weight, bias))
    torch.testing.assert_close(plain(features, offset), reference(features, offset, weight, padding=1))
    expected = reference(features, offset, weight, mask, bias, padding=1)
    torch.testing.assert_close(modulated(features, offset, mask), expected)
