"""A head of feature level "hidden" as a head on pooled features, which is how it is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from calib.heads import Head, hidden_input, linear_layers


def on_pooled_features(
    head: Head, first_layers: Sequence[tuple[np.ndarray, np.ndarray]], feature_shape: Sequence[int]
) -> Head:
    """Returns the head on pooled features that scores as a head on hidden features does: an exact rewriting.

    The first layer `W x + b` of the detector precedes the head's own. A low-rank correction U along directions V with
    center μ is folded in: `W + U V` and `b - U V μ`.

    Args:
        head: of feature level hidden; one of another level is returned as it is.
        first_layers: per stage the weight (H, D) and bias (H,) of the detector's first fully connected layer.
        feature_shape: of a RoI's pooled feature, D numbers.

    Raises:
        ValueError: layers of another number or size than the head was trained on.
    """
    if head.level != "hidden":
        return head
    found = [weight.shape for weight, _ in first_layers]
    hidden, size = head.info.widths[0], head.info.pooled_size or (found[0][1] if found else 0)
    if found != [(hidden, size)] * len(head.stages):
        raise ValueError(
            f"head {head.name!r}: the detector's first layers have shapes {found}, expected "
            f"{[(hidden, size)] * len(head.stages)}"
        )
    info = replace(
        head.info,
        level="pooled",
        feature_shape=tuple(feature_shape),
        widths=(size, *head.info.widths),
        frozen_layers=0 if head.info.rank else head.info.frozen_layers + 1,
        rank=0,
        pooled_size=0,
    )
    pooled = Head(info)
    for own, deployed, (weight, bias) in zip(head.stages, pooled.stages, first_layers, strict=True):
        device = linear_layers(own)[0].weight.device
        pairs = [hidden_input(own).correct(torch.as_tensor(weight).to(device), torch.as_tensor(bias).to(device))]
        pairs += [(layer.weight, layer.bias) for layer in linear_layers(own)]
        with torch.no_grad():
            for layer, (new_weight, new_bias) in zip(linear_layers(deployed), pairs, strict=True):
                layer.weight.copy_(new_weight)
                layer.bias.copy_(new_bias)
            linear_layers(deployed)[-1].load_state_dict(linear_layers(own)[-1].state_dict())
    return pooled.to(next(head.parameters()).device).train(head.training)
