"""Learned fusion as a torch module: what `LearnedFusion` computes on arrays, fused with the original scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calib.classifiers import ClassifierKind
from calib.heads import Head
from calib.posthoc import Posthoc
from extract.class_scores import Activation, Average
from fuse.export.module import CalibratedScores
from fuse.learned import MAX_OBJECTNESS, SMALLEST, LearnedFusion


@dataclass(frozen=True)
class HeadLayout:
    """What a head's module is built from; fields as of `calib.heads.HeadInfo`, `average` is its `stage_average`."""

    widths: tuple[int, ...]
    average: Average = "scores"
    activation: Activation = "softmax"
    classifier: ClassifierKind = "linear"
    groups: int = 0

    @classmethod
    def from_head(cls, head: Head) -> HeadLayout:
        """Returns the layout of a head."""
        info = head.info
        return cls(tuple(info.widths), info.stage_average, info.activation, info.classifier, info.groups)

    def options(self) -> dict[str, Any]:
        """Returns the options of `CalibratedScores` but widths and stages."""
        return {
            "calibrated_average": self.average,
            "head_activation": self.activation,
            "classifier": self.classifier,
            "groups": self.groups,
        }


class LearnedScores(CalibratedScores):
    """Class scores of RoIs from features, logits and objectness; the layers of the first head are the base's own.

    Letters in shapes: `R` RoIs, `S` stages, `K` classes, `J` classifiers, `D` axes of a feature.

    Attributes:
        others: a `CalibratedScores` of mode "calibrated" for each further head.
        weights: (J+2, K) float32 buffer.
    """

    weights: Tensor

    def __init__(self, heads: Sequence[HeadLayout], stages: int, **options: Any):
        """
        Args:
            heads: at least one.
            stages: S.
            options: mode, activation, original_average, cat_threshold, cat_scale and with_objectness of
                `CalibratedScores`.
        """
        first, *others = heads
        super().__init__(first.widths, stages, **first.options(), **options)
        self.others = nn.ModuleList(
            CalibratedScores(one.widths, stages, mode="calibrated", **one.options()) for one in others
        )
        self.register_buffer("weights", torch.zeros(len(heads) + 3, first.widths[-1] - 1))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments of `forward`."""
        return "features", "logits", "objectness"

    def load_scorer(self, scorer: Head | Posthoc | LearnedFusion, tail_mask: np.ndarray) -> None:
        """Copies the weights of a learned fusion and its heads, and the tail classes (K,) bool."""
        assert isinstance(scorer, LearnedFusion)
        first, *others = scorer.heads
        super().load_scorer(first, tail_mask)
        for module, head in zip(self.others, others, strict=True):
            assert isinstance(module, CalibratedScores)
            module.load_scorer(head, tail_mask)
        self.weights.copy_(torch.from_numpy(scorer.weights))

    def forward(self, features: Tensor, logits: Tensor, objectness: Tensor | None = None) -> Tensor:
        """Returns (R, K+1) float32 scores of features (R, S, *D), logits (R, S, K+1) and objectness (R,)."""
        assert objectness is not None, "learned fusion needs it"
        original = self.original_scores(logits)
        if self.mode == "original":
            return self._weighted(original, objectness)
        scores = [original, self.calibrated_scores(features, logits)]
        scores += [other(features, logits) for other in self.others]
        p = objectness.float().clamp(1 - MAX_OBJECTNESS, MAX_OBJECTNESS)
        z = self.weights[-2] * (p / (1 - p)).log()[:, None] + self.weights[-1]
        for weight, one in zip(self.weights, scores, strict=False):
            z = z + weight * one[:, :-1].clamp(min=SMALLEST).log()
        learned = torch.cat([z.sigmoid(), original[:, -1:]], 1)
        return self._fuse(self._weighted(original, objectness), learned)
