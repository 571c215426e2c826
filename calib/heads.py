"""Calibrated heads: one small network per stage on cached features.

A head is a chain of fully connected layers with ReLU between them; the kinds differ in where the layers
come from. Letters in shapes: `R` RoIs, `S` stages, `K` classes, `D` axes of a feature.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from calib.config import HEAD_TYPES
from calib.scoring import Level, check_average, stage_scores
from extract.rois import RoIs

if TYPE_CHECKING:
    from extract import RoICache
    from extract.detectors import Detector


@dataclass(frozen=True)
class HeadInfo:
    """What a head is made for; stored beside its weights.

    Attributes:
        kind: one of `calib.config.HEAD_TYPES`.
        level: level of the features it takes, "pooled" or "embedding".
        feature_shape: one RoI's features, (C, 7, 7) or (C,).
        widths: sizes of the layers, from the flattened feature to K+1.
        frozen_layers: how many layers at the bottom are the detector's own and not trained.
        category_ids: the annotation file's ids of classes 0…K-1.
        names: of these classes.
        instance_counts: training instances of these classes; they decide which columns a fusion replaces.
        stages: matching IoU of each stage.
        stage_average: what is averaged over the stages, "scores" or "logits".
        detector: name of the detector that made the features.
        weights_sha256: of that detector's weights; empty where it is not known.
        cache_fingerprint: fingerprint of the cache it was trained on.
        config: the training's configuration.
    """

    kind: str
    level: Level
    feature_shape: tuple[int, ...]
    widths: tuple[int, ...]
    frozen_layers: int
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    instance_counts: tuple[int, ...]
    stages: tuple[float, ...]
    stage_average: str = "scores"
    detector: str = ""
    weights_sha256: str = ""
    cache_fingerprint: str = ""
    config: dict[str, Any] = field(default_factory=dict)


class Head(nn.Module):
    """One network per stage; a scorer.

    Attributes:
        info: what it is made for.
        name: its kind, as a scorer's name.
        stages: ModuleList of S Sequentials of Linear and ReLU.
    """

    def __init__(self, info: HeadInfo) -> None:
        super().__init__()
        self.info = info
        self.name = info.kind
        self.stages = nn.ModuleList(_mlp(info.widths) for _ in info.stages)
        for stage in self.stages:
            for layer in _linears(stage)[: info.frozen_layers]:
                layer.requires_grad_(False)

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

    def averaged(self, average: str) -> Head:
        """The same networks with their stages averaged otherwise, "scores" or "logits"."""
        other = copy.copy(self)
        other.info = replace(self.info, stage_average=check_average(average))
        return other

    def forward(self, features: torch.Tensor, stage: int = 0) -> torch.Tensor:
        """Logits (n, K+1) of float32 features (n, *D) or (n, prod(D)) of one stage."""
        return self.stages[stage](features.flatten(1))

    @torch.inference_mode()
    def logits(self, rois: RoIs) -> np.ndarray:
        """(R, S, K+1) float32. Raises ValueError for features of another level or shape."""
        every = self._checked_features(rois)
        device = next(self.parameters()).device
        logits = np.empty((len(rois), len(self.stages), self.num_classes + 1), np.float32)
        for stage in range(len(self.stages)):
            features = torch.as_tensor(every[:, stage]).to(device).float()
            logits[:, stage] = self(features, stage).float().cpu().numpy()
        return logits

    def scores(self, rois: RoIs) -> np.ndarray:
        """(R, K+1) float32 class scores, background last; rows sum to 1. Raises as `logits` does."""
        return stage_scores(self.logits(rois), self.info.stage_average)

    def check_cache(self, cache: RoICache) -> None:
        """Raises ValueError, naming the field, if the head cannot score this cache."""
        feature_shape = tuple(cache.fields.get("features", (0,))[1:])
        self._check_origin(cache.url, cache.detector)
        for name, own, other in (
            ("level", self.info.level, cache.level),
            ("feature shape", self.info.feature_shape, feature_shape),
            ("stages", self.info.stages, tuple(cache.stages)),
            ("number of classes", self.num_classes, cache.num_classes),
            ("category ids", self.info.category_ids, tuple(cache.classes["category_id"].tolist())),
        ):
            if own != other:
                raise ValueError(f"{cache.url}: {name} {_short(other)}, the head was trained for {_short(own)}")
        for index, (own, other) in enumerate(zip(self.info.instance_counts, _instance_counts(cache), strict=True)):
            if own != other:
                raise ValueError(
                    f"{cache.url}: class {cache.classes['name'][index]} has {other} training instances, "
                    f"the head was trained with {own}; extract the cache with the train file's counts "
                    "(--train-annotations)"
                )

    def check_detector(self, detector: Detector) -> None:
        """Raises ValueError, naming the field, if the head was trained for another detector."""
        name = f"detector {detector.description['name']}"
        self._check_origin(name, detector.description)
        for part, own, other in (
            ("stages", self.info.stages, tuple(detector.stages)),
            ("number of classes", self.num_classes, detector.num_classes),
        ):
            if own != other:
                raise ValueError(f"{name}: {part} {_short(other)}, the head was trained for {_short(own)}")

    def _check_origin(self, source: str, description: Mapping[str, object]) -> None:
        for part, own, key in (
            ("detector", self.info.detector, "name"),
            ("detector weights", self.info.weights_sha256, "weights_sha256"),
        ):
            other = str(description.get(key, ""))
            if own != other:
                raise ValueError(f"{source}: {part} {_short(other)}, the head was trained for {_short(own)}")

    def _checked_features(self, rois: RoIs) -> np.ndarray | torch.Tensor:
        expected = (len(self.stages), *self.info.feature_shape)
        if rois.features is None or tuple(rois.features.shape[1:]) != expected:
            found = "none" if rois.features is None else tuple(rois.features.shape[1:])
            raise ValueError(
                f"image {rois.image_id}: head {self.name!r} expects {self.info.level} features "
                f"{expected} per RoI, the RoIs have {found}"
            )
        return rois.features


class Stages(nn.Module):
    """All networks of a head in one call, which is what DistributedDataParallel takes a step for."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Logits (n, K+1) of every stage's float32 features (n, prod(D))."""
        return [self.head(inputs, stage) for stage, inputs in enumerate(features)]


def build_head(cache: RoICache, kind: str, hidden: int, seed: int, config: dict[str, Any]) -> Head:
    """An untrained head for the features of a cache.

    `linear` puts a new classifier on the detector's own embedding; on a cache of level "pooled" the
    detector's fully connected layers come along, frozen. `2fc_rand` and `3fc_rand` are new altogether.
    `3fc_ft` begins as the detector's own layers, classifier included. New hidden layers are initialised as
    in Glorot and Bengio (2010), new classifiers from a normal distribution of deviation 0.01, biases 0.

    Raises:
        ValueError: the cache's level does not suit the kind, or it lacks the detector's layers.
    """
    if kind not in HEAD_TYPES:
        raise ValueError(f"head_type is {kind!r}, expected one of {', '.join(HEAD_TYPES)}")
    if cache.level == "logits" or (cache.level == "embedding" and kind != "linear"):
        needed = "'pooled' or 'embedding'" if kind == "linear" else "'pooled'"
        raise ValueError(
            f"{cache.url}: head {kind!r} needs features of level {needed}, the cache has {cache.level!r}"
            + ("; --head-type linear supports it" if cache.level == "embedding" else "")
        )
    own = [cache.fc_layers(stage) for stage in range(len(cache.stages))]
    keep = {"3fc_ft": None, "linear": -1 if cache.level == "pooled" else 0}.get(kind, 0)
    kept = [layers[:keep] for layers in own]
    if keep != 0 and not all(own):
        raise ValueError(
            f"{cache.url}: head {kind!r} needs the detector's own layers, which the cache lacks; "
            "2fc_rand and 3fc_rand do without"
        )
    feature_shape = tuple(cache.fields["features"][1:])
    widths = (math.prod(feature_shape), *(len(bias) for _, bias in kept[0]))
    if kind != "3fc_ft":
        new_hidden = {"linear": (), "2fc_rand": (hidden,), "3fc_rand": (hidden, hidden)}[kind]
        widths = (*widths, *new_hidden, cache.num_classes + 1)
    if widths[-1] != cache.num_classes + 1:
        raise ValueError(f"{cache.url}: its classifier has {widths[-1]} outputs, {cache.num_classes + 1} needed")
    info = HeadInfo(
        kind=kind,
        level=cache.level,
        feature_shape=feature_shape,
        widths=widths,
        frozen_layers=len(kept[0]) if kind == "linear" else 0,
        category_ids=tuple(cache.classes["category_id"].tolist()),
        names=tuple(cache.classes["name"].tolist()),
        instance_counts=_instance_counts(cache),
        stages=tuple(cache.stages),
        stage_average=check_average(cache.detector.get("stage_average", "scores")),
        detector=str(cache.detector.get("name", "")),
        weights_sha256=str(cache.detector.get("weights_sha256", "")),
        cache_fingerprint=cache.fingerprint,
        config=config,
    )
    head = Head(info)
    generator = torch.Generator().manual_seed(seed)
    for stage, layers in enumerate(kept):
        _initialise(_linears(head.stages[stage]), layers, generator, f"{cache.url}: detector/stage_{stage}")
    return head


def _instance_counts(cache: RoICache) -> tuple[int, ...]:
    return tuple(cache.classes["instance_count"].tolist())


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    # Skips torch's own initialisation: it would draw from the global generator and be overwritten anyway.
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _linears(stage: nn.Module) -> list[nn.Linear]:
    return [layer for layer in stage.children() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _initialise(linears: list[nn.Linear], own: list, generator: torch.Generator, source: str) -> None:
    """The detector's own layers first, as far as they go, then new ones."""
    for depth, layer in enumerate(linears):
        if depth < len(own):
            for name, values in zip(("weight", "bias"), own[depth], strict=True):
                parameter = getattr(layer, name)
                if parameter.shape != values.shape:
                    expected = tuple(parameter.shape)
                    raise ValueError(f"{source}/{name}_{depth} is {values.shape}, expected {expected}")
                parameter.copy_(torch.from_numpy(np.array(values, np.float32)))
        else:
            layer.bias.zero_()
            if layer is linears[-1]:
                layer.weight.normal_(std=0.01, generator=generator)
            else:
                nn.init.xavier_uniform_(layer.weight, generator=generator)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
