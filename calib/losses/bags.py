"""Balanced group softmax: classes compete with classes of similar count only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from calib.classifiers import GroupedLinear, group_log_scores
from calib.head_types import has_new_classifier
from calib.heads import Head, linear_layers
from calib.losses.base import Loss
from extract.utils.distributed import all_reduce_sum

if TYPE_CHECKING:
    import pandas as pd


class Bags(Loss):
    """Σ of cross-entropies: background against foreground, and in each bin of N_c its classes against "others".

    In a bin, RoIs of other bins and background are "others". The authors draw `others` times as many of them as the bin
    has RoIs; here all count, with the weight that makes their expected number that. A bin without RoIs has no loss.
    Scores are p(foreground) times the bin's softmax. With one bin there is nothing to balance: the head and its loss
    are those of plain cross-entropy.

    Source: Li et al., "Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax"
    (CVPR 2020), and the released code (`GSBBoxHeadWith0`).
    """

    needs = "class counts, and a head type with a new classifier"
    source = "Li et al., CVPR 2020 (BAGS)"
    group: Tensor

    def __init__(
        self,
        classes: pd.DataFrame,
        seed: int = 0,
        edges: tuple[float, ...] = (10, 100, 1000),
        others: float = 8.0,
    ) -> None:
        super().__init__(classes, seed)
        self.others = others
        # Bins without classes have no softmax.
        bins = np.searchsorted(edges, classes["instance_count"].to_numpy(), side="right")
        found, group = np.unique(bins, return_inverse=True)
        self.groups = len(found) if len(found) > 1 else 0
        self.register_buffer("group", torch.from_numpy(group.astype(np.int64)))

    def adapt(self, head: Head) -> Head:
        """Returns the head with a classifier of groups; raises ValueError for a head that keeps the detector's."""
        if not self.groups:
            return head
        kind = head.info.kind
        if not has_new_classifier(kind):
            raise ValueError(f"loss is 'bags', which needs a new classifier: head type {kind} keeps the detector's")
        grouped = Head(replace(head.info, classifier="grouped", groups=self.groups, activation="exp"))
        for new, old in zip(grouped.stages, head.stages, strict=True):
            *hidden, last = linear_layers(old)
            *new_hidden, classifier = linear_layers(new)
            for to, layer in zip(new_hidden, hidden, strict=True):
                to.load_state_dict(layer.state_dict())
            assert isinstance(classifier, GroupedLinear)
            classifier.group.copy_(self.group)
            for own, values in ((classifier.weight, last.weight), (classifier.bias, last.bias)):
                own.data.zero_()
                own.data[: len(self.group)], own.data[len(self.group)] = values.data[:-1], values.data[-1]
        return grouped

    def predictions(self, logits: Tensor) -> Tensor:
        """Returns (n, K+1) logarithms of scores."""
        return group_log_scores(logits, self.group) if self.groups else logits

    def forward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Returns the sum of the RoIs' losses; logits are (n, K+2+G)."""
        if not self.groups:
            return cross_entropy(logits, targets, reduction="sum")
        classes = len(self.group)
        is_background = targets == classes
        # A target that is no class belongs to no group.
        own_group = torch.cat([self.group, self.group.new_full((1,), -1)])[targets]
        loss = cross_entropy(logits[:, classes : classes + 2], (~is_background).long(), reduction="sum")
        in_group = torch.stack([own_group == g for g in range(self.groups)])
        inside, rois = (
            all_reduce_sum(torch.cat([in_group.sum(1), targets.new_tensor([len(targets)])]))
            .float()
            .split([self.groups, 1])
        )
        weight_of_others = (self.others * inside / (rois - inside).clamp(min=1)).clamp(max=1)
        totals = inside + weight_of_others * (rois - inside)
        for g in range(self.groups):
            columns = torch.nonzero(self.group == g)[:, 0]
            of_group = torch.cat([logits[:, columns], logits[:, classes + 2 + g, None]], 1)
            position = torch.searchsorted(columns, targets).clamp(max=len(columns))
            target = torch.where(in_group[g], position, len(columns))
            each = cross_entropy(of_group, target, reduction="none")
            weights = torch.where(in_group[g], 1.0, weight_of_others[g])
            loss = loss + (each * weights).sum() * (rois / totals[g].clamp(min=1))[0] * (inside[g] > 0)
        return loss
