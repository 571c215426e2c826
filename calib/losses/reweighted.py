"""Generalised re-weighting: cross-entropy with class weights, the loss of DisAlign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from calib.losses.base import Loss, counts_of
from extract.utils.distributed import all_reduce_sum

if TYPE_CHECKING:
    import pandas as pd


class Reweighted(Loss):
    """−w_y·log softmax(z)_y / Σ w_y, where w_c is proportional to (1/r_c)^ρ, r_c the class's share of instances.

    Weights of foreground classes have mean 1, and background has weight 1. With ρ = 0 it is plain cross-entropy. Use it
    with head type disalign, whose logits it aligns.

    Source: Zhang et al., "Distribution Alignment: A Unified Framework for Long-tail Visual Recognition" (CVPR 2021),
    generalized re-weight, and the released code (`GRWFastRCNNOutputs`).
    """

    needs = "class counts"
    source = "Zhang et al., CVPR 2021 (DisAlign), generalized re-weight"
    weights: Tensor

    def __init__(self, classes: pd.DataFrame, seed: int = 0, rho: float = 0.8) -> None:
        super().__init__(classes, seed)
        counts = counts_of(classes, "instance_count").double()
        weights = (counts.sum() / counts) ** rho
        weights = weights / weights.mean()
        self.register_buffer("weights", torch.cat([weights, torch.ones(1)]).float())

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' losses."""
        own = self.weights[targets]
        rois, total = all_reduce_sum(torch.stack([own.new_tensor(len(own)), own.sum()]))
        return cross_entropy(logits, targets, self.weights, reduction="sum") * (rois / total)
