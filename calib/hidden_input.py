"""What heads on feature level "hidden" begin with: the ReLU of the detector's first layer, which may be corrected.

A hidden feature is the pre-activation `h = W x + b` (H,) of the detector's first fully connected layer, followed by Q
coordinates `p = V (x - μ)` of its input x along fixed orthonormal directions V, a row each. A low-rank head learns U
(H, Q), from zeros, and begins with `relu(h + U p)`. That is the first layer with weight `W + U V`: gradient descent on
U is gradient descent on the weight, restricted to the span of V, with the same learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HiddenInput(nn.Module):
    """The ReLU of the first layer, after a low-rank correction where the head has one.

    Attributes:
        hidden: H, outputs of the first layer.
        weight: (H, Q) parameter U; None without correction.
        directions, center: (Q, D) and (D,) float32 buffers of the correction, V and μ.
    """

    directions: Tensor
    center: Tensor

    def __init__(self, hidden: int, rank: int = 0, pooled_size: int = 0) -> None:
        """`rank` is Q, 0 for no correction; `pooled_size` is D."""
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.zeros(hidden, rank)) if rank else None
        if rank:
            self.register_buffer("directions", torch.zeros(rank, pooled_size))
            self.register_buffer("center", torch.zeros(pooled_size))

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, H) of features (n, H) or (n, H+Q)."""
        before = features[:, : self.hidden]
        if self.weight is not None:
            before = before + features[:, self.hidden :] @ self.weight.T
        return before.relu()

    @torch.no_grad()
    def correct(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the first layer's weight (H, D) and bias (H,) float32 with the correction folded in, exactly."""
        if self.weight is None:
            return weight, bias
        change = self.weight.double() @ self.directions.double()
        return (weight.double() + change).float(), (bias.double() - change @ self.center.double()).float()
