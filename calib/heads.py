"""Calibrated heads: one multilayer perceptron per stage, on cached features; `calib.head_types` builds new ones.

Letters in shapes: `R` RoIs, `S` stages, `K` classes, `D` axes of a feature.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from calib.classifiers import ClassifierKind, build_classifier
from calib.head_info import HeadInfo, describe_head
from calib.hidden_input import HiddenInput
from calib.scoring import Level, instance_counts_of
from extract.cache.format import Projection
from extract.class_scores import check_average, stage_scores
from extract.data.class_map import ClassMap
from extract.detectors.class_map import map_detector
from extract.detectors.identity import check_same_detector
from extract.rois import POOLED_AFTER_CONVOLUTIONS, RoIs
from extract.utils.errors import shortened
from extract.utils.summarized import Summarized

if TYPE_CHECKING:
    from extract import RoICache
    from extract.detectors.base import Detector


class Head(Summarized, nn.Module):
    """One network per stage; a scorer.

    Attributes:
        info: description of the head.
        name: head type and loss, the scorer's name.
        stages: ModuleList of S Sequentials of Linear and ReLU; at level hidden a `HiddenInput` comes first.
    """

    def __init__(self, info: HeadInfo) -> None:
        super().__init__()
        self.info = info
        self.name = info.name
        self.stages = nn.ModuleList(_build_network(info) for _ in info.stages)
        for stage in self.stages:
            for layer in linear_layers(stage)[: info.frozen_layers]:
                for parameter in (layer.weight, layer.bias):  # what else a classifier has is trained
                    parameter.requires_grad_(False)

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        return describe_head(self.info, sum(parameter.numel() for parameter in self.parameters()))

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.info.category_ids)

    @property
    def level(self) -> Level:
        """Feature level of its input."""
        return self.info.level

    @property
    def instance_counts(self) -> tuple[int, ...]:
        """Training instances of the classes 0…K-1."""
        return self.info.instance_counts

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category ids of the classes 0…K-1."""
        return self.info.category_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 0…K-1."""
        return self.info.names

    @property
    def class_map(self) -> ClassMap | None:
        """The detector's outputs in the order of the classes; None if output i is class i."""
        return ClassMap(self.info.class_outputs, self.info.num_outputs) if self.info.class_outputs else None

    @property
    def projections(self) -> list[Projection]:
        """Each stage's projection that gives the last Q numbers of its features; [] if it needs none."""
        if not self.info.rank:
            return []
        inputs = [hidden_input(stage) for stage in self.stages]
        return [Projection(one.directions.cpu().numpy(), one.center.cpu().numpy()) for one in inputs]

    def averaged(self, average: str) -> Head:
        """Returns a head with the same networks that averages its stages by "scores" or "logits"."""
        other = copy.copy(self)
        other.info = replace(self.info, stage_average=check_average(average))
        return other

    def forward(self, features: torch.Tensor, stage: int = 0) -> torch.Tensor:
        """Returns logits (n, K+1) of one stage from float32 features (n, *D) or (n, prod(D))."""
        return self.stages[stage](features.flatten(1))

    @torch.inference_mode()
    def logits(self, rois: RoIs) -> np.ndarray:
        """Returns (R, S, K+1) float32 logits. Raises ValueError for another feature level or shape."""
        all_features = self._checked_features(rois)
        device = next(self.parameters()).device
        logits = np.empty((len(rois), len(self.stages), self.num_classes + 1), np.float32)
        for stage in range(len(self.stages)):
            features = torch.as_tensor(all_features[:, stage]).to(device).float()
            logits[:, stage] = self(features, stage).float().cpu().numpy()
        return logits

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores; rows sum to 1 with softmax. Raises as `logits` does."""
        return stage_scores(self.logits(rois), self.info.stage_average, self.info.activation)

    def check_cache(self, cache: RoICache) -> None:
        """Raises ValueError, naming the field, if the head cannot score this cache.

        Warns of a detector with another input size or other options.
        """
        url, info = cache.url, self.info
        self._check_origin(url, cache.detector)
        if (info.level, cache.level) == ("hidden", "pooled"):
            raise ValueError(
                f"{url}: level pooled, the head was trained for hidden; python -m extract convert makes such a cache "
                "of it, with --projection-from and the head's train cache"
            )
        _check_same(url, "level", info.level, cache.level)
        shape = tuple(cache.fields.get("features", (0,))[1:])
        if not info.accepts(shape):
            _check_same(url, "feature shape", info.feature_shape, shape)
        self._check_projections(cache)
        _check_same(url, "stages", info.stages, tuple(cache.stages))
        _check_same(url, "number of classes", self.num_classes, cache.num_classes)
        _check_same(url, "category ids", info.category_ids, tuple(cache.classes["category_id"].tolist()))
        _check_same(url, "order of the detector's classes", _outputs(self.class_map), _outputs(cache.class_map))
        for index, (own, other) in enumerate(zip(info.instance_counts, instance_counts_of(cache), strict=True)):
            if own != other:
                raise ValueError(
                    f"{url}: class {cache.classes['name'][index]} has {other} training instances, the head was "
                    f"trained with {own}; extract the cache with the train file's counts (--train-annotations)"
                )

    def check_detector(self, detector: Detector) -> None:
        """Raises ValueError, naming the field, if the head was trained for another detector; warns as `check_cache`."""
        name = f"detector {detector.description['name']}"
        self._check_origin(name, detector.description)
        _check_same(name, "stages", self.info.stages, tuple(detector.stages))
        detector = map_detector(detector, self.class_map)
        _check_same(name, "number of classes", self.num_classes, detector.num_classes)

    def _check_origin(self, source: str, description: Mapping[str, object]) -> None:
        info = self.info
        trained_for: dict[str, Any] = {"name": info.detector, "weights_sha256": info.weights_sha256}
        trained_for |= {"tensors_sha256": info.tensors_sha256, "settings": info.settings}
        check_same_detector(source, description, "the head was trained for", trained_for)
        if self.level == "pooled":
            found = bool(description.get(POOLED_AFTER_CONVOLUTIONS, False))
            own, other = (
                "after the box head's convolutions" if after else "of the box head's input"
                for after in (info.pooled_after_convolutions, found)
            )
            _check_same(source, "pooled features", own, other)

    def _check_projections(self, cache: RoICache) -> None:
        """Raises ValueError if the cache's coordinates are along other directions than those of the head."""
        for stage, pair in enumerate(zip(self.projections, cache.projections if self.info.rank else [], strict=True)):
            if not all(map(np.array_equal, *pair)):
                raise ValueError(
                    f"{cache.url}: the projection of stage {stage} has other directions than the head's train cache; "
                    "extract the cache with --projection-from and that train cache"
                )

    def _checked_features(self, rois: RoIs) -> np.ndarray | torch.Tensor:
        expected = (len(self.stages), *self.info.feature_shape)
        shape = () if rois.features is None else tuple(rois.features.shape[1:])
        if rois.features is None or shape[0] != expected[0] or not self.info.accepts(shape[1:]):
            found = shape or "none"
            raise ValueError(
                f"image {rois.image_id}: head {self.name!r} expects {self.info.level} features "
                f"{expected} per RoI, the RoIs have {found}"
            )
        return rois.features


def linear_layers(stage: nn.Module) -> list[nn.Linear]:
    """Returns the fully connected layers of one stage's network, in order."""
    return [layer for layer in stage.children() if isinstance(layer, nn.Linear)]


def hidden_input(stage: nn.Module) -> HiddenInput:
    """Returns what one stage's network on hidden features begins with."""
    return cast("HiddenInput", next(stage.children()))


def _build_network(info: HeadInfo) -> nn.Sequential:
    mlp = build_mlp(info.widths, info.classifier, info.groups)
    return (
        nn.Sequential(HiddenInput(info.widths[0], info.rank, info.pooled_size), *mlp) if info.level == "hidden" else mlp
    )


def build_mlp(widths: Sequence[int], classifier: ClassifierKind = "linear", groups: int = 0) -> nn.Sequential:
    """Returns fully connected layers with ReLU between them, the last of another kind; parameters are not set."""
    # skip_init: see `build_classifier`.
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, build_classifier(classifier, widths[-2], widths[-1], groups))


def _check_same(source: str, field: str, expected: object, found: object) -> None:
    if found != expected:
        raise ValueError(f"{source}: {field} {shortened(found)}, the head was trained for {shortened(expected)}")


def _outputs(class_map: ClassMap | None) -> str:
    return "as in the class table" if class_map is None else str(class_map.outputs)
