"""The fully connected layers of box heads: read, verified, and replaced in a state_dict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from extract.cache.format import Layers

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


def replace_classifiers(
    model: nn.Module, modules: Sequence[nn.Linear | None], classifiers: Layers
) -> dict[str, Tensor]:
    """Returns the model's state_dict with other weights (K+1, C) and biases (K+1,) in its classifiers, one per stage.

    Raises ValueError for a classifier that is not a linear layer (None), or has no bias but needs one.
    """
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
