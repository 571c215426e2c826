"""Federated loss: sigmoid cross-entropy on a draw of classes, since no image is annotated for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from calib.losses.base import Loss, counts_of, weighted_sigmoid_loss
from extract.utils.distributed import all_reduce_sum

if TYPE_CHECKING:
    import pandas as pd


class Federated(Loss):
    """Σ_{c∈S} BCE(z_c) over a set S of classes: those of the step's RoIs, and others drawn by N_c^power up to 50.

    N_c counts training images. Background is always in the set. If there are no more classes than that, it is plain
    sigmoid cross-entropy. Scores are sigmoids.

    Source: Zhou et al., "Probabilistic Two-Stage Detection" (2021), federated loss, and its code in detectron2
    (`FastRCNNOutputLayers.get_fed_loss_classes`).
    """

    needs = "class counts"
    source = "Zhou et al., 2021 (CenterNet2)"
    activation = "sigmoid"
    draw_weights: Tensor

    def __init__(self, classes: pd.DataFrame, seed: int = 0, num_classes: int = 50, power: float = 0.5) -> None:
        super().__init__(classes, seed)
        self.num_classes = num_classes
        self.register_buffer("draw_weights", counts_of(classes, "image_count") ** power)

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' losses."""
        present = torch.bincount(targets, minlength=logits.shape[1])[:-1]
        kept = self.draw_classes(all_reduce_sum(present) > 0, step)
        return weighted_sigmoid_loss(logits, targets, torch.cat([kept, kept.new_ones(1)]).to(logits.dtype))

    def draw_classes(self, present: Tensor, step: int) -> Tensor:
        """Returns (K,) bool, the set: the classes that are present (K,) bool, and a draw of the others."""
        absent = ~present.cpu()
        amount = min(self.num_classes - int(present.sum()), int(absent.sum()))
        if amount <= 0:
            return present
        # On the CPU, so that all devices and processes draw the same classes.
        seed = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(self.draw_weights.cpu() * absent, amount, generator=generator)
        return present.index_fill(0, drawn.to(present.device), True)
