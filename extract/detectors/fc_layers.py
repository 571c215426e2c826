"""The fully connected layers of box heads: found, read, verified, and replaced in a state_dict.

A box head may have convolutions before its fully connected layers. Features of level "pooled" are then the output of
the convolutions, so that they lead to the logits through fully connected layers, like those of other box heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from extract.cache.format import Layers
from extract.detectors.common import capture_inputs
from extract.rois import POOLED_AFTER_CONVOLUTIONS

TOLERANCE = 1e-3
"""Of recomputed logits, relative to the largest."""


def linear_modules(part: nn.Module) -> list[nn.Linear]:
    """Returns the linear layers within a module, in their order of definition."""
    return [module for module in part.modules() if isinstance(module, nn.Linear)]


def read_layers(modules: Sequence[nn.Linear]) -> Layers:
    """Returns weights and biases as float32 arrays; a missing bias is 0."""
    biases = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in modules]
    return [(_to_numpy(m.weight), _to_numpy(bias)) for m, bias in zip(modules, biases, strict=True)]


def verified_layers(layers: Layers, features: Tensor, logits: Tensor) -> Layers:
    """Returns `layers` if they, with ReLU between them, map features (R, …) to logits (R, K+1), else [].

    This recognises every head that has other parts than fully connected layers (convolutions, normalisation, a cosine
    classifier, a temperature).
    """
    x = features.flatten(1).float().cpu()
    if not layers or layers[0][0].shape[1] != x.shape[1]:
        return []
    for depth, (weight, bias) in enumerate(layers):
        x = linear(x.relu() if depth else x, torch.from_numpy(weight), torch.from_numpy(bias))
    expected = logits.float().cpu()
    tolerance = TOLERANCE * float(expected.abs().max())
    return layers if x.shape == expected.shape and torch.allclose(x, expected, atol=tolerance) else []


def layer_after_convolutions(
    hidden: Sequence[nn.Linear],
    classifier: Layers,
    pooled: Tensor,
    entering: Sequence[Sequence[Tensor]],
    logits: Tensor,
) -> nn.Linear | None:
    """Returns the first fully connected layer of a box head that has convolutions before it.

    Args:
        hidden: the fully connected layers before the classifier.
        classifier: the classifier alone; [] if it is not linear.
        pooled: (R, C, P, P), input of the box head.
        entering: what `capture_inputs` of the first of `hidden` recorded: its input (R, D).
        logits: (R, K+1), background last.

    Returns None if `pooled` itself enters that layer, or if the layers from there on do not give the logits.
    """
    if not hidden or not classifier or not entering[0]:
        return None
    flat, features = pooled.flatten(1), entering[0][0]
    if features.shape == flat.shape and torch.allclose(features, flat):
        return None
    return hidden[0] if verified_layers([*read_layers(hidden), *classifier], features, logits) else None


def run_box_head(box_head: nn.Module, pooled: Tensor, first: nn.Linear | None) -> tuple[Tensor, Tensor]:
    """Runs a box head on pooled maps (R, C, P, P); returns its output, and the features of level "pooled".

    `first` is its `layer_after_convolutions`.
    """
    if first is None:
        return box_head(pooled), pooled
    with capture_inputs([first]) as captured:
        output = box_head(pooled)
    return output, as_maps(captured[0][0], pooled.shape[-2:])


def as_maps(entering: Tensor, sides: Sequence[int]) -> Tensor:
    """Reshapes the input (R, D) of a fully connected layer to maps (R, C, P, P); (R, D, 1, 1) of averaged maps."""
    height, width = sides if entering.shape[1] % (sides[0] * sides[1]) == 0 else (1, 1)
    return entering.reshape(len(entering), entering.shape[1] // (height * width), height, width)


def describe_pooled(first: Sequence[nn.Linear | None]) -> dict[str, bool]:
    """Returns the entry of a detector's description for its stages' `layer_after_convolutions`, if it has one."""
    return {POOLED_AFTER_CONVOLUTIONS: True} if any(layer is not None for layer in first) else {}


def replace_classifiers(
    model: nn.Module, modules: Sequence[nn.Linear | None], classifiers: Layers
) -> dict[str, Tensor]:
    """Returns the model's state_dict with other weights (K+1, C) and biases (K+1,) in its classifiers, one per stage.

    Raises ValueError for a classifier that is not a linear layer (None), or has no bias but needs one, and for a model
    whose weights are in half precision.
    """
    reduced = [name for name, parameter in model.named_parameters() if parameter.dtype in (torch.bfloat16, torch.half)]
    if reduced:
        raise ValueError(f"{reduced[0]} is in half precision: load the detector with precision fp32")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = dict(model.state_dict())
    for module, (weight, bias) in zip(modules, classifiers, strict=True):
        if module is None:
            raise ValueError("the classifier is not one linear layer per stage")
        state[names[id(module.weight)]] = torch.from_numpy(weight).to(module.weight)
        if module.bias is not None:
            state[names[id(module.bias)]] = torch.from_numpy(bias).to(module.bias)
        elif bias.any():
            raise ValueError(f"{names[id(module.weight)]} has no bias, which the method would change")
    return state


def _to_numpy(parameter: Tensor) -> np.ndarray:
    return parameter.detach().float().cpu().numpy()
