"""Last layers of heads, from the embedding to logits. A new one is a subclass of `nn.Linear` and a row of the table."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import linear, normalize

ClassifierKind = Literal["linear", "cosine"]


class CosineLinear(nn.Linear):
    """w_c·x / ‖x‖ + b_c: the cosine similarity if w_c has norm 1; another norm is its scale."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns (n, outputs) logits of (n, C) embeddings."""
        return linear(normalize(input), self.weight, self.bias)


CLASSIFIERS: dict[ClassifierKind, type[nn.Linear]] = {"linear": nn.Linear, "cosine": CosineLinear}
