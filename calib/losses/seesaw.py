"""Seesaw loss: cross-entropy that spares rare classes the gradients of frequent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from calib.losses.base import Loss, counts_of

if TYPE_CHECKING:
    import pandas as pd


class Seesaw(Loss):
    """−log(e^z_i / (Σ_j S_ij·e^z_j + e^z_i)), S_ij = M_ij·C_ij, for RoIs of class i against other classes j.

    Mitigation M_ij = (N_j / N_i)^p where class j is rarer than i, else 1; compensation C_ij = (σ_j / σ_i)^q where its
    score σ_j is higher than σ_i, else 1. Background has factor 1 on both sides. N are the counts of the training set,
    which the authors' running counts approach; on class-balanced steps running counts would become equal. With p = 0
    and q = 0 it is plain cross-entropy.

    Source: Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation" (CVPR 2021), and its code in mmdetection
    (`SeesawLoss`).
    """

    needs = "class counts"
    source = "Wang et al., CVPR 2021"
    counts: Tensor

    def __init__(
        self, classes: pd.DataFrame, seed: int = 0, p: float = 0.8, q: float = 2.0, min_score: float = 1e-2
    ) -> None:
        super().__init__(classes, seed)
        self.p, self.q, self.min_score = p, q, min_score
        self.register_buffer("counts", counts_of(classes, "instance_count"))

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' losses."""
        others = 1 - one_hot(targets, logits.shape[1])
        others[:, -1] = 0
        others[targets == logits.shape[1] - 1] = 0
        return cross_entropy(logits + self._log_factors(logits.detach(), targets) * others, targets, reduction="sum")

    def _log_factors(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns (n, K+1) log S of each RoI, with values for its own class and background that are not used."""
        log_counts = torch.cat([self.counts.log(), self.counts.new_zeros(1)])
        mitigation = self.p * (log_counts - log_counts[targets][:, None]).clamp(max=0)
        log_scores = logits.log_softmax(1)
        own = log_scores.gather(1, targets[:, None]).clamp(min=torch.tensor(self.min_score).log().item())
        return mitigation + self.q * (log_scores - own).clamp(min=0)
