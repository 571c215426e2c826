"""Feature level "hidden": the pre-activations of the first fully connected layer, and a projection of its input.

Both are linear in the pooled features x: `W x + b`, before the ReLU, and Q coordinates `V (x - μ)` along fixed
directions, from which a head can correct W in low rank. Letters in shapes: `R` RoIs, `D` numbers of a pooled feature,
`H` outputs of the first layer, `Q` directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from extract.cache.format import Layers, Projection
from extract.detectors.base import Detector, ForwardOutput, Image, ImageDetections, SelectProposals

if TYPE_CHECKING:
    from extract.rois import RoIs

Layer = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,) float32."""


def hidden_layer(layer: Sequence[np.ndarray | Tensor], projection: Projection | None = None) -> Layer:
    """Returns the linear layer from pooled features to hidden features: weight (H+Q, D) and bias (H+Q,).

    Args:
        layer: weight (H, D) and bias (H,) of the first fully connected layer.
        projection: None for Q = 0.
    """
    weight, bias = (torch.as_tensor(part, dtype=torch.float32) for part in layer)
    if projection is None:
        return weight, bias
    directions, center = (torch.as_tensor(part).to(weight) for part in projection)
    return torch.cat([weight, directions]), torch.cat([bias, -directions @ center])


def hidden_layers(stages: Sequence[Layers], projections: Sequence[Projection] = ()) -> list[Layer]:
    """Returns each stage's `hidden_layer`; `projections` is () for Q = 0."""
    of_stages: list[Projection | None] = [*projections] if projections else [None] * len(stages)
    return [hidden_layer(layers[0], projection) for layers, projection in zip(stages, of_stages, strict=True)]


def hidden_features(
    pooled: Tensor, layer: Sequence[np.ndarray | Tensor], projection: Projection | None = None
) -> Tensor:
    """Returns the hidden features (R, H+Q) float32 of pooled features (R, D) or (R, C, P, P).

    `layer` and `projection` are those of `hidden_layer`.
    """
    weight, bias = (part.to(pooled.device) for part in hidden_layer(layer, projection))
    return linear(pooled.flatten(1).float(), weight, bias)


def check_layers(name: str, stages: Sequence[Layers]) -> None:
    """Raises ValueError unless every stage has a fully connected layer before its classifier, all of one width.

    Args:
        name: of the detector or the cache, for messages.
        stages: per stage the layers from pooled features to the logits; [] where they are not fully connected.
    """
    if not stages or not all(stages):
        raise ValueError(
            f"{name}: feature level hidden needs a box head whose layers behind the pooled features are fully connected"
        )
    if min(map(len, stages)) < 2:
        raise ValueError(f"{name}: feature level hidden needs a fully connected layer before the classifier")
    if len(widths := {layers[0][0].shape for layers in stages}) > 1:
        raise ValueError(f"{name}: the first fully connected layers of its stages have shapes {sorted(widths)}")


Forward = Callable[[Sequence[Image], SelectProposals | None], ForwardOutput]
"""The forward passes of a detector at one feature level; see `Detector.forward`."""


def forward_at_level(detector: Detector, level: str, projections: Sequence[Projection] = ()) -> Forward:
    """Returns the detector's forward pass at a feature level, of which adapters have all but "hidden".

    `projections` and errors are those of `HiddenForward`.
    """
    if level == "hidden":
        return HiddenForward(detector, projections)
    return lambda images, select_proposals: detector.forward(images, level, select_proposals)


class HiddenForward:
    """Forward passes of a detector that give hidden features.

    Attributes:
        modules: of each stage, the module of the detector's model that is its first layer. Where there is one, its
            output is kept, otherwise (None) the layer is computed a second time.
    """

    def __init__(self, detector: Detector, projections: Sequence[Projection] = ()) -> None:
        """Raises ValueError naming a detector whose layers have no hidden features.

        Args:
            detector: any adapter's.
            projections: of each stage; () for Q = 0.
        """
        self._detector = detector
        stages = detector.fc_layers("pooled")
        check_layers(f"detector {detector.description['name']}", stages)
        layers = [hidden_layer(stage[0]) for stage in stages]
        self.modules = [_find_module(getattr(detector, "model", None), *layer) for layer in layers]
        self._layers = [tuple(part.to(detector.device) for part in layer) for layer in layers]
        empty = layers[0][0].new_empty(0, layers[0][0].shape[1]), layers[0][0].new_empty(0)
        projected = [hidden_layer(empty, projection) for projection in projections]
        self._projections = [tuple(part.to(detector.device) for part in layer) for layer in projected]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], select_proposals: SelectProposals | None) -> ForwardOutput:
        """Runs `Detector.forward` at feature level "hidden"."""
        with _capture_outputs(self.modules) as captured:
            output = self._detector.forward(images, "pooled", select_proposals)
        counts = [len(rois) for rois in output.rois]
        own = [calls[0] if [len(one) for one in calls] == [sum(counts)] else None for calls in captured]
        parts = [[None] * len(counts) if one is None else list(one.split(counts)) for one in own]
        rois = [self._hidden(*image) for image in zip(output.rois, *parts, strict=True)]
        return HiddenOutput(rois, output)

    def _hidden(self, rois: RoIs, *own: Tensor | None) -> RoIs:
        """Returns the RoIs with hidden features, from each stage's pre-activations (R, H) if they were captured."""
        pooled = cast("Tensor", rois.features)
        stages = [self._stage_features(s, pooled[:, s].flatten(1), one) for s, one in enumerate(own)]
        return replace(rois, features=torch.stack(stages, 1))

    def _stage_features(self, stage: int, pooled: Tensor, own: Tensor | None) -> Tensor:
        before = linear(pooled.float(), *self._layers[stage]) if own is None else own.float()
        if not self._projections:
            return before
        return torch.cat([before, linear(pooled.float(), *self._projections[stage])], 1)


@dataclass(frozen=True)
class HiddenOutput:
    """The output of a forward pass with hidden features; see `extract.detectors.base.ForwardOutput`."""

    rois: list[RoIs]
    original: ForwardOutput

    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        return self.original.masks()

    def to_framework(self, detections: Sequence[ImageDetections]) -> list[Any]:
        """See `extract.detectors.base.ForwardOutput.to_framework`."""
        return self.original.to_framework(detections)


def _find_module(model: nn.Module | None, weight: Tensor, bias: Tensor) -> nn.Linear | None:
    """Returns the model's linear layer with these weights, None unless there is exactly one."""
    linears = [m for m in (model.modules() if model else ()) if isinstance(m, nn.Linear)]
    biases = [torch.zeros(m.out_features) if m.bias is None else m.bias for m in linears]
    pairs = [(m.weight, b) for m, b in zip(linears, biases, strict=True)]
    own = (weight, bias)
    found = [m for m, pair in zip(linears, pairs, strict=True) if all(map(_equal, pair, own))]
    return found[0] if len(found) == 1 else None


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach().float().cpu(), b)


@contextmanager
def _capture_outputs(modules: Sequence[nn.Module | None]) -> Iterator[list[list[Tensor]]]:
    """Records a copy of every output of each module while the block runs: a ReLU in place may change the output."""
    outputs: list[list[Tensor]] = [[] for _ in modules]
    with ExitStack() as stack:
        for module, calls in zip(modules, outputs, strict=True):
            if module is not None:
                hook = module.register_forward_hook(lambda _, __, output, calls=calls: calls.append(output.clone()))
                stack.callback(hook.remove)
        yield outputs
