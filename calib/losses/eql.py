"""Equalization loss: sigmoid cross-entropy in which other classes do not discourage rare ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from calib.losses.base import Loss, counts_of, weighted_sigmoid_loss

if TYPE_CHECKING:
    import pandas as pd


class EQL(Loss):
    """Σ_c w_c·BCE(z_c), w_c = 1 − E(r)·T(N_c)·(1 − y_c): foreground RoIs of other classes do not train rare class c.

    E is 1 for foreground RoIs and T is 1 for classes in fewer than `max_images` training images; the paper's threshold
    λ = 1.76e-3 of LVIS v0.5's images is 100 images. With 0 it is plain sigmoid cross-entropy. Scores are sigmoids.

    Source: Tan et al., "Equalization Loss for Long-Tailed Object Recognition" (CVPR 2020), equalization loss, and the
    released code (`EQLFastRCNNOutputs.eql_loss`).
    """

    needs = "class counts"
    source = "Tan et al., CVPR 2020"
    activation = "sigmoid"
    rare: Tensor

    def __init__(self, classes: pd.DataFrame, seed: int = 0, max_images: float = 100) -> None:
        super().__init__(classes, seed)
        rare = counts_of(classes, "image_count") < max_images
        self.register_buffer("rare", torch.cat([rare, torch.zeros(1, dtype=torch.bool)]).float())

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' losses."""
        foreground = (targets < logits.shape[1] - 1).to(logits.dtype)[:, None]
        return weighted_sigmoid_loss(
            logits, targets, 1 - foreground * self.rare * (1 - one_hot(targets, logits.shape[1]))
        )
