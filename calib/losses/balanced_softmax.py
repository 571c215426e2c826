"""Balanced softmax: cross-entropy of logits plus the logarithm of the class count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from calib.losses.base import Loss, counts_of

if TYPE_CHECKING:
    import pandas as pd


class BalancedSoftmax(Loss):
    """−log softmax(z_c + τ·log N_c, z_bg)_y: logits that are trained on N_c and used as if all classes were equal.

    Counts are divided by their mean, since background, which has no count, is half of every step: its logit stays, and
    equal counts give plain cross-entropy, as τ = 0 does. The loss is for steps in which classes are as frequent as in
    the dataset, `--sampling instance-balanced`; on class-balanced steps it over-corrects.

    Source: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (NeurIPS 2020), and the released
    code (`balanced_softmax_loss`).
    """

    needs = "class counts"
    source = "Ren et al., NeurIPS 2020"
    shift: Tensor

    def __init__(self, classes: pd.DataFrame, seed: int = 0, tau: float = 1.0) -> None:
        super().__init__(classes, seed)
        counts = counts_of(classes, "instance_count").double()
        shift = tau * torch.log(counts / counts.mean())
        self.register_buffer("shift", torch.cat([shift, torch.zeros(1)]).float())

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' losses."""
        return cross_entropy(logits + self.shift, targets, reduction="sum")
