"""The box head of a torchvision detector: its outputs, and its fully connected layers, background last.

torchvision's background is class 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from extract.cache.format import Layers
from extract.detectors.common import capture_inputs
from extract.detectors.fc_layers import (
    layer_after_convolutions,
    linear_modules,
    read_layers,
    run_box_head,
    verified_layers,
)


class BoxHeadOutput(NamedTuple):
    """The output of the box head and its predictor for R RoIs."""

    features: dict[str, Tensor]
    """Feature level → "pooled" (R, C, P, P), "embedding" (R, C)."""

    logits: Tensor
    """(R, K+1), background last."""

    deltas: Tensor
    """(R, 4) box deltas that all classes share, or (R, 4 (K+1)) with background first."""


class BoxHead:
    """The box head and predictor of a model.

    Attributes:
        first: its `extract.detectors.fc_layers.layer_after_convolutions`.
    """

    def __init__(self, heads: RoIHeads, channels: int):
        self._heads, self._channels = heads, channels
        self.first: nn.Linear | None = None
        hidden = linear_modules(heads.box_head)
        with capture_inputs(hidden[:1]) as entering:
            probe = self.probe()
        pooled, last = probe.features["pooled"], self._last_layer(probe)
        self.first = layer_after_convolutions(hidden, last, pooled, entering, probe.logits)

    def forward(self, pooled: Tensor) -> BoxHeadOutput:
        """Runs box head and predictor on pooled maps (R, C, P, P)."""
        embedding, pooled = run_box_head(self._heads.box_head, pooled, self.first)
        logits, deltas = self._heads.box_predictor(embedding)
        background_last = torch.cat([logits[:, 1:], logits[:, :1]], 1)
        return BoxHeadOutput({"pooled": pooled, "embedding": embedding}, background_last, deltas)

    @torch.no_grad()
    def probe(self) -> BoxHeadOutput:
        """Runs `forward` on a synthetic RoI, for properties that are no attributes of the model."""
        height, width = self._heads.box_roi_pool.output_size
        device = next(self._heads.parameters()).device
        pooled = torch.linspace(-1, 1, self._channels * height * width, device=device)
        return self.forward(pooled.reshape(1, self._channels, height, width))

    def fc_layers(self, level: str) -> Layers:
        """Returns the layers of `extract.detectors.base.Detector.fc_layers` of the only stage."""
        probe = self.probe()
        last = self._last_layer(probe)
        if level == "logits" or not last:
            return []
        layers = [*read_layers(linear_modules(self._heads.box_head)), *last]
        return layers if level == "embedding" else verified_layers(layers, probe.features["pooled"], probe.logits)

    def classifier(self) -> nn.Linear | None:
        """Returns the predictor's linear layer from the embedding to the logits, None unless there is exactly one."""
        return self._find_classifier(self.probe())

    def _last_layer(self, probe: BoxHeadOutput) -> Layers:
        classifier = self._find_classifier(probe)
        return _background_last([classifier]) if classifier else []

    def _find_classifier(self, probe: BoxHeadOutput) -> nn.Linear | None:
        embedding, modules = probe.features["embedding"], linear_modules(self._heads.box_predictor)
        found = [m for m in modules if verified_layers(_background_last([m]), embedding, probe.logits)]
        return found[0] if len(found) == 1 else None


def _background_last(modules: list[nn.Linear]) -> Layers:
    """Returns the layers with their first output, background, as the last one."""
    return [(np.roll(weight, -1, 0), np.roll(bias, -1)) for weight, bias in read_layers(modules)]
