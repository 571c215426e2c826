"""Losses that heads are trained with; a new one is one file, a subclass of `Loss`, and one row of `LOSSES`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from calib.config import LossName
from calib.head_types import has_new_classifier
from calib.heads import Head, linear_layers
from calib.losses.bags import Bags
from calib.losses.balanced_softmax import BalancedSoftmax
from calib.losses.base import CrossEntropy, Loss
from calib.losses.eql import EQL
from calib.losses.federated import Federated
from calib.losses.reweighted import Reweighted
from calib.losses.seesaw import Seesaw
from extract.data.class_map import MIN_LOGIT

if TYPE_CHECKING:
    import pandas as pd

LOSSES: dict[LossName, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "balanced-softmax": BalancedSoftmax,
    "reweighted": Reweighted,
    "seesaw": Seesaw,
    "bags": Bags,
    "federated": Federated,
    "eql": EQL,
}
PRIOR = 0.01
"""Score of every class before training with sigmoids, so that the many negatives do not dominate the first steps."""


def build_loss(name: LossName, classes: pd.DataFrame, seed: int = 0) -> Loss:
    """Builds a loss with the hyperparameters of its paper for a cache's class table."""
    return LOSSES[name](classes, seed)


@torch.no_grad()
def adapt_head(head: Head, loss: Loss) -> Head:
    """Returns the head that the loss trains, as `calib.head_types.build_head` returns it, with its activation.

    Raises:
        ValueError: the head type does not suit the loss.
    """
    head = loss.adapt(head)
    if loss.activation == "sigmoid":
        head.info = replace(head.info, activation="sigmoid")
        prior = torch.logit(torch.tensor(PRIOR)).item()
        for stage in head.stages if has_new_classifier(head.info.kind) else []:
            bias = linear_layers(stage)[-1].bias
            bias[bias > MIN_LOGIT] = prior
    return head


__all__ = ["LOSSES", "Loss", "adapt_head", "build_loss"]
