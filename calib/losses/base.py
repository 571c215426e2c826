"""What all losses share. `N_c` is the training count of class c; background is the last of K+1 logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from extract.class_scores import Activation

if TYPE_CHECKING:
    import pandas as pd

    from calib.heads import Head


class Loss(nn.Module):
    """A loss of logits; a subclass states its hyperparameters as arguments of the constructor.

    The first line of its docstring describes it in `python -m calib --list`.

    Attributes:
        needs: what the loss is computed from, besides logits and labels.
        source: paper and equation.
        activation: what turns the trained head's logits into scores.
    """

    needs: ClassVar[str] = "nothing else"
    source: ClassVar[str] = ""
    activation: ClassVar[Activation] = "softmax"

    def __init__(self, classes: pd.DataFrame, seed: int = 0) -> None:
        """`classes` is a cache's class table; `seed` of draws, of which each step has its own."""
        super().__init__()
        self.seed = seed

    def adapt(self, head: Head) -> Head:
        """Returns the head that the loss trains, of a head as `calib.head_types.build_head` returns it."""
        return head

    def predictions(self, logits: Tensor) -> Tensor:
        """Returns (n, K+1) numbers whose order is that of the classes' scores, for the accuracy in the metrics."""
        return logits

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the losses of RoIs; over all processes, divided by all RoIs, it is the step's loss.

        Args:
            logits: (n, K+1) float32.
            targets: (n,) int64, 0…K.
            step: number of the step.
        """
        raise NotImplementedError


class CrossEntropy(Loss):
    """−log softmax(z)_y over K+1 classes: the paper's loss, and cRT's."""

    source = "Wang et al., 2019; Kang et al., ICLR 2020, section 4.2 (cRT)"

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' cross-entropy."""
        return cross_entropy(logits, targets, reduction="sum")


def counts_of(classes: pd.DataFrame, column: str) -> Tensor:
    """Returns (K,) float32 training counts, at least 1 each."""
    return torch.from_numpy(np.maximum(classes[column].to_numpy(np.float32), 1))


def weighted_sigmoid_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted sum of binary cross-entropy of each logit.

    Background has a logit of its own, trained as the classes' are; detections do not use it.

    Args:
        logits: (n, K+1) float32.
        targets: (n,) int64, 0…K.
        weights: float32 that broadcast to (n, K+1).
    """
    present = one_hot(targets, logits.shape[1]).to(logits.dtype)
    return (binary_cross_entropy_with_logits(logits, present, reduction="none") * weights).sum()
