"""A calibrated head and its fusion as one torch module, which `torch.export` turns into a program of its own.

The same arithmetic as `calib.scoring` and `fuse.scores`, on tensors: for servers that have torch and nothing else,
and for detectors given back to their framework (`fuse.plugins`).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from calib.scoring import check_activation, check_average
from extract.utils.files import write_bytes
from fuse.scores import MODES, Mode


class CalibratedScores(nn.Module):
    """Class scores of RoIs from their features and the original classifier's logits.

    Letters in shapes: `R` RoIs, `S` stages, `K` classes, `D` axes of a feature.
    """

    def __init__(
        self,
        widths: Sequence[int],
        stages: int = 1,
        *,
        mode: Mode = "cat",
        activation: str = "softmax",
        original_average: str = "scores",
        calibrated_average: str = "scores",
        threshold: float = 0.05,
        scale: float | None = None,
    ):
        """
        Args:
            widths: of the head's layers, from the flattened feature to K+1.
            stages: S; each has layers of its own.
            mode, threshold, scale: as of `fuse.fuse_scores`.
            activation: of the original classifier, see `calib.scoring`; a calibrated head has softmax.
            original_average, calibrated_average: what is averaged over the stages.

        Raises ValueError for a mode, an activation or an average that there is not.
        """
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
        self.mode, self.activation = mode, check_activation(activation)
        self.original_average, self.calibrated_average = map(check_average, (original_average, calibrated_average))
        self.threshold, self.scale = threshold, scale
        self.stages = nn.ModuleList(_layers(widths) for _ in range(stages))
        self.register_buffer("tail", torch.zeros(widths[-1] - 1, dtype=torch.bool))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """(R, S, *D) features and (R, S, K+1) original logits, background last → (R, K+1) float32 scores."""
        original = _scores(logits.float(), self.original_average, self.activation)
        if self.mode == "original":
            return original
        own = [stage(features[:, s].float().flatten(1)) for s, stage in enumerate(self.stages)]
        calibrated = _scores(torch.stack(own, 1), self.calibrated_average, "softmax")
        return self._fuse(original, calibrated)

    def _fuse(self, original: Tensor, calibrated: Tensor) -> Tensor:
        """`fuse.scores.fuse_scores` on tensors."""
        if self.mode == "calibrated":
            return calibrated
        foreground, new = original[:, :-1], calibrated[:, :-1]
        if self.mode == "avg":
            fused = (foreground + new) / 2
        else:
            if self.mode == "cat-thr":
                new = torch.where(new < self.threshold, 0.0, new)
            elif self.mode == "cat-scale":
                new = new * (self._background_ratio(original, calibrated) if self.scale is None else self.scale)
            fused = torch.where(self.tail, new, foreground)
        return torch.cat([fused, original[:, -1:]], 1)

    @staticmethod
    def _background_ratio(original: Tensor, calibrated: Tensor) -> Tensor:
        below = original[:, -1].sum(dtype=torch.float64)
        ratio = calibrated[:, -1].sum(dtype=torch.float64) / below
        return torch.where(below > 0, ratio, 1.0).float()


def save_program(scores: CalibratedScores, feature_shape: Sequence[int], path: str | Path) -> None:
    """Writes a program that `torch.export.load(path).module()` brings back without this library.

    It is called like `CalibratedScores`, with any number of RoIs, in float32 and on the CPU.

    Args:
        feature_shape: D, of one RoI.
    """
    stages, classes = len(scores.stages), len(scores.tail)
    example = torch.zeros(2, stages, *feature_shape), torch.zeros(2, stages, classes + 1)
    rois = torch.export.Dim("rois", min=0, max=1 << 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals while it traces
        program = torch.export.export(scores.cpu(), example, dynamic_shapes=({0: rois}, {0: rois}))
        content = io.BytesIO()
        torch.export.save(program, content)
    write_bytes(path, content.getvalue())


def _layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _scores(logits: Tensor, average: str, activation: str) -> Tensor:
    """`calib.scoring.stage_scores` on tensors."""

    def activate(z: Tensor) -> Tensor:
        return z.softmax(-1) if activation == "softmax" else z.sigmoid()

    return activate(logits).mean(1) if average == "scores" else activate(logits.mean(1))
