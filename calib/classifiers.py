"""Last layers of heads, from the embedding to logits. A new one is a subclass of `nn.Linear` and a row of the table.

Letters in shapes: `C` numbers of an embedding, `K` classes, `G` groups of classes. Background is the last logit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

ClassifierKind = Literal["linear", "cosine", "scaled", "aligned", "grouped"]


class CosineLinear(nn.Linear):
    """w_c·x / ‖x‖ + b_c: the cosine similarity if w_c has norm 1; another norm is its scale."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns (n, outputs) logits of (n, C) embeddings."""
        return linear(normalize(input), self.weight, self.bias)


class ScaledLinear(nn.Linear):
    """s_c·(w_c·x + b_c), of which only the scales are trained (LWS).

    Source: Kang et al., "Decoupling Representation and Classifier" (ICLR 2020), section 4.2, learnable weight scaling.
    """

    def __init__(self, inputs: int, outputs: int, device: str | None = None) -> None:
        super().__init__(inputs, outputs, device=device)
        self.scale = nn.Parameter(torch.ones(outputs, device=device))

    def reset_extra(self) -> None:
        """Sets the scales to 1."""
        nn.init.ones_(self.scale)

    def forward(self, input: Tensor) -> Tensor:
        """Returns (n, outputs) logits of (n, C) embeddings."""
        return super().forward(input) * self.scale


class AlignedLinear(nn.Linear):
    """σ(v·x + u)·(a_c·z_c + b_c) + (1 − σ(v·x + u))·z_c of logits z = w·x + d, which are not trained (DisAlign).

    Background keeps its logit.

    Source: Zhang et al., "Distribution Alignment: A Unified Framework for Long-tail Visual Recognition" (CVPR 2021),
    adaptive calibration, and the released code (`DisAlignFastRCNNOutputLayers`).
    """

    def __init__(self, inputs: int, outputs: int, device: str | None = None) -> None:
        super().__init__(inputs, outputs, device=device)
        self.logit_scale = nn.Parameter(torch.ones(outputs - 1, device=device))
        self.logit_bias = nn.Parameter(torch.zeros(outputs - 1, device=device))
        self.confidence = nn.Linear(inputs, 1, device=device)

    def reset_extra(self) -> None:
        """Makes the aligned logits the original ones."""
        nn.init.ones_(self.logit_scale)
        for parameter in (self.logit_bias, *self.confidence.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, input: Tensor) -> Tensor:
        """Returns (n, outputs) logits of (n, C) embeddings."""
        logits = super().forward(input)
        foreground, confidence = logits[:, :-1], self.confidence(input).sigmoid()
        aligned = confidence * (foreground * self.logit_scale + self.logit_bias) + (1 - confidence) * foreground
        return torch.cat([aligned, logits[:, -1:]], 1)


class GroupedLinear(nn.Linear):
    """A softmax over each group of classes, and one over background and foreground (BAGS).

    The K+2+G outputs are the logits of the classes, of background and foreground, and of "others" in each group. In
    evaluation mode it returns logarithms of scores: of p(foreground) times the group's softmax, and of p(background).

    Source: Li et al., "Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax"
    (CVPR 2020), and the released code (`GSBBoxHeadWith0._merge_score`).

    Attributes:
        group: (K,) int64 buffer, the group of each class, 0…G-1.
    """

    group: Tensor

    def __init__(self, inputs: int, outputs: int, groups: int, device: str | None = None) -> None:
        super().__init__(inputs, outputs + 1 + groups, device=device)
        self.register_buffer("group", torch.zeros(outputs - 1, dtype=torch.int64, device=device))

    def reset_extra(self) -> None:
        """Puts all classes into the first group."""
        self.group.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Returns (n, K+2+G) logits of (n, C) embeddings in training mode, else (n, K+1) logarithms of scores."""
        logits = super().forward(input)
        return logits if self.training else group_log_scores(logits.float(), self.group)


def group_log_scores(logits: Tensor, group: Tensor) -> Tensor:
    """Returns (n, K+1) logarithms of scores of the (n, K+2+G) outputs of a `GroupedLinear`; `group` is (K,) int64."""
    classes = logits[:, : len(group)]
    binary = logits[:, len(group) : len(group) + 2].log_softmax(1)
    others = logits[:, len(group) + 2 :]
    lowest = torch.full_like(classes, -torch.inf)
    totals = [
        torch.cat([torch.where(group == g, classes, lowest), others[:, g : g + 1]], 1).logsumexp(1)
        for g in range(others.shape[1])
    ]
    return torch.cat([classes - torch.stack(totals, 1)[:, group] + binary[:, 1:], binary[:, :1]], 1)


CLASSIFIERS: dict[ClassifierKind, type[nn.Linear]] = {
    "linear": nn.Linear,
    "cosine": CosineLinear,
    "scaled": ScaledLinear,
    "aligned": AlignedLinear,
    "grouped": GroupedLinear,
}


def build_classifier(kind: ClassifierKind, inputs: int, outputs: int, groups: int = 0) -> nn.Linear:
    """Returns a last layer whose weight and bias are not set; what else it has leaves the logits as they are."""
    sizes = (inputs, outputs, groups) if kind == "grouped" else (inputs, outputs)
    # skip_init: torch's own initialisation would draw from the global generator and be overwritten anyway.
    layer: nn.Linear = nn.utils.skip_init(CLASSIFIERS[kind], *sizes)
    if isinstance(layer, ScaledLinear | AlignedLinear | GroupedLinear):
        layer.reset_extra()
    return layer
