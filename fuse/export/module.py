"""A calibrated classifier and its fusion as one torch module, which `torch.export` compiles to a standalone program.

The module computes on tensors what `calib.scoring` and `fuse.scores` compute on arrays: for servers that have torch
and nothing else, and for detectors exported to their framework (`fuse.plugins`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from calib.classifiers import ClassifierKind
from calib.heads import Head, build_mlp
from calib.posthoc import Posthoc
from extract.class_scores import check_activation, check_average
from extract.rois import RoIs
from fuse.defaults import CAT_THRESHOLD
from fuse.learned import LearnedFusion
from fuse.scores import SCORE_MODES, ScoreMode

_AFFINE, _GATE = ("scale", "shift"), ("gate_scale", "gate_shift")


class CalibratedScores(nn.Module):
    """Class scores of RoIs from their features and the original classifier's logits.

    Letters in shapes: `R` RoIs, `S` stages, `K` classes, `D` axes of a feature.

    Attributes:
        stages: a head's layers, per stage; empty for a method of `calib.posthoc`.
        tail: (K,) bool buffer, tail classes.
        scale, shift: (S, K+1) float32 buffers of a method of `calib.posthoc`; a head has none.
        gate_scale, gate_shift: likewise, of the logit of the method's second factor, if it has one.
    """

    tail: Tensor
    scale: Tensor
    shift: Tensor
    gate_scale: Tensor
    gate_shift: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        stages: int = 1,
        *,
        mode: ScoreMode = "cat",
        activation: str = "softmax",
        original_average: str = "scores",
        calibrated_average: str = "scores",
        cat_threshold: float = CAT_THRESHOLD,
        cat_scale: float | None = None,
        classifier: ClassifierKind = "linear",
        groups: int = 0,
        head_activation: str = "softmax",
        gated: bool = False,
        with_objectness: bool = False,
    ):
        """
        Args:
            widths: of the head's layers, from the flattened feature to K+1; (K+1,) for a method that scales and shifts
                the original logits.
            stages: S; each has its own layers.
            mode, cat_threshold, cat_scale: as in `fuse.fuse_scores`.
            activation: of the original classifier and of methods, see `calib.scoring`.
            original_average, calibrated_average: what is averaged over the stages.
            classifier, groups, head_activation: of a head, `classifier`, `groups` and `activation` of its `HeadInfo`.
            gated: whether the method has a second factor, `calib.posthoc.Posthoc.gate`.
            with_objectness: whether scores are `extract.class_scores.scores_with_objectness` of the class scores.

        Raises ValueError for an unknown mode, activation or average.
        """
        super().__init__()
        if mode not in SCORE_MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(SCORE_MODES)}")
        self.mode, self.activation = mode, check_activation(activation)
        self.head_activation = check_activation(head_activation)
        self.original_average, self.calibrated_average = map(check_average, (original_average, calibrated_average))
        self.cat_threshold, self.cat_scale = cat_threshold, cat_scale
        self.with_objectness = with_objectness
        has_layers = len(widths) > 1
        self.stages = nn.ModuleList(build_mlp(widths, classifier, groups) for _ in range(stages if has_layers else 0))
        self.register_buffer("tail", torch.zeros(widths[-1] - 1, dtype=torch.bool))
        self._buffers_of_method = () if has_layers else _AFFINE + _GATE * gated
        for name in self._buffers_of_method:
            self.register_buffer(name, torch.full((stages, widths[-1]), float(name == "scale")))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments of `forward`."""
        return ("features", "logits", "objectness") if self.with_objectness else ("features", "logits")

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.stages) or len(self.scale)

    @property
    def num_outputs(self) -> int:
        """K, without background."""
        return len(self.tail)

    def load_scorer(self, scorer: Head | Posthoc | LearnedFusion, tail_mask: np.ndarray) -> None:
        """Copies the weights of a head or a fitted method, and the tail classes (K,) bool."""
        if isinstance(scorer, Head):
            self.stages.load_state_dict(scorer.stages.state_dict())
        else:
            assert isinstance(scorer, Posthoc), "learned fusion has a module of its own"
            values = scorer.affine + (scorer.gate or ())
            for name, array in zip(self._buffers_of_method, values, strict=True):
                self.get_buffer(name).copy_(torch.from_numpy(array))
        self.tail.copy_(torch.from_numpy(tail_mask))

    def forward(self, features: Tensor, logits: Tensor, objectness: Tensor | None = None) -> Tensor:
        """Returns (R, K+1) float32 scores of features (R, S, *D) and original logits (R, S, K+1), background last.

        `objectness` (R,) is needed if the module was made `with_objectness`.
        """
        original = self._weighted(self.original_scores(logits), objectness)
        if self.mode == "original":
            return original
        return self._fuse(original, self._weighted(self.calibrated_scores(features, logits), objectness))

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores of one image, computed on the module's device."""
        return self(*self._inputs(rois)).cpu().numpy()

    def original_scores(self, logits: Tensor) -> Tensor:
        """Returns (R, K+1) class scores of the original classifier."""
        return _scores(logits.float(), self.original_average, self.activation)

    def calibrated_scores(self, features: Tensor, logits: Tensor) -> Tensor:
        """Returns (R, K+1) scores of the head or the method."""
        if not len(self.stages):
            return self._method_scores(logits.float())
        own = [stage(features[:, s].float().flatten(1)) for s, stage in enumerate(self.stages)]
        return _scores(torch.stack(own, 1), self.calibrated_average, self.head_activation)

    def _inputs(self, rois: RoIs) -> tuple[Tensor, ...]:
        """Returns the arguments of `forward` for the RoIs of one image."""
        device = self.tail.device
        logits = torch.from_numpy(rois.logits).to(device)
        features = logits if rois.features is None else torch.as_tensor(rois.features, device=device)
        objectness = [torch.from_numpy(rois.objectness).to(device)] if "objectness" in self.inputs else []
        return features, logits, *objectness

    def _weighted(self, scores: Tensor, objectness: Tensor | None) -> Tensor:
        """Computes `extract.class_scores.scores_with_objectness` on tensors, where it applies."""
        if not self.with_objectness:
            return scores
        assert objectness is not None, "the module is made with_objectness"
        return (scores * objectness[:, None]).sqrt()

    def _method_scores(self, logits: Tensor) -> Tensor:
        """Computes `calib.posthoc.Posthoc.scores` on tensors."""
        adjusted = logits * self.scale + self.shift
        if len(self._buffers_of_method) == len(_AFFINE):
            return _scores(adjusted, self.calibrated_average, self.activation)
        gate = logits * self.gate_scale + self.gate_shift
        if self.calibrated_average == "logits":
            return _activate(adjusted.mean(1), self.activation) * gate.mean(1).sigmoid()
        return (_activate(adjusted, self.activation) * gate.sigmoid()).mean(1)

    def _fuse(self, original: Tensor, calibrated: Tensor) -> Tensor:
        """Computes `fuse.fuse_scores` on tensors."""
        if self.mode == "calibrated":
            return calibrated
        foreground, new = original[:, :-1], calibrated[:, :-1]
        if self.mode == "avg":
            fused = (foreground + new) / 2
        else:
            if self.mode == "cat-thr":
                new = torch.where(new < self.cat_threshold, 0.0, new)
            elif self.mode == "cat-scale":
                ratio = self._background_ratio(original, calibrated) if self.cat_scale is None else self.cat_scale
                new = new * ratio
            fused = torch.where(self.tail, new, foreground)
        return torch.cat([fused, original[:, -1:]], 1)

    @staticmethod
    def _background_ratio(original: Tensor, calibrated: Tensor) -> Tensor:
        denominator = original[:, -1].sum(dtype=torch.float64)
        ratio = calibrated[:, -1].sum(dtype=torch.float64) / denominator
        return torch.where(denominator > 0, ratio, 1.0).float()


def _scores(logits: Tensor, average: str, activation: str) -> Tensor:
    """Computes `extract.class_scores.stage_scores` on tensors."""
    if average == "scores":
        return _activate(logits, activation).mean(1)
    return _activate(logits.mean(1), activation)


def _activate(logits: Tensor, activation: str) -> Tensor:
    if activation == "exp":
        return logits.exp()
    return logits.softmax(-1) if activation == "softmax" else logits.sigmoid()
