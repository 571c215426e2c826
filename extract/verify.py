"""Recomputes a cache's logits from its features."""

from __future__ import annotations

import numpy as np

from extract.cache.derived import LOGIT_TOLERANCE, classifier_columns, relative_error
from extract.cache.format import CacheError, Layers, layers_above
from extract.cache.projections import check_hidden
from extract.cache.reader import RoICache
from extract.rois import RoIs


class LogitCheck:
    """Compares the logits of a cache's images with those that its layers compute from the features.

    Attributes:
        worst: the largest difference, relative to the image's largest logit; None before there is one, and if the cache
            has no features, no fully connected layers or no logits.
    """

    def __init__(self, cache: RoICache) -> None:
        """Reads the layers."""
        self.worst: float | None = None
        self._cache = cache
        self._error: CacheError | None = None
        self._columns = classifier_columns(cache.class_map, cache.num_classes)
        self._stages: list[Layers] = []
        try:
            own = [cache.fc_layers(stage) for stage in range(len(cache.stages))]
            if cache.level == "hidden":
                width = cache.fields["features"][-1]
                check_hidden(cache.url, cache.level, width, own, cache.projections, len(own))
            if "logits" in cache.fields:
                self._stages = [layers_above(cache.level, layers) for layers in own]
        except CacheError as error:
            self._error = error

    def add(self, rois: RoIs) -> None:
        """Compares one image."""
        for stage, layers in enumerate(self._stages):
            if not (layers and len(rois)) or self._error:
                continue
            recomputed = forward(layers, layer_inputs(self._cache, rois, stage))[:, self._columns]
            difference = relative_error(rois.logits[:, stage, self._columns], recomputed)
            self.worst = max(self.worst or 0.0, difference)
            if difference > LOGIT_TOLERANCE:
                self._error = CacheError(
                    f"{self._cache.url}: image {rois.image_id}: stage {stage}: logits of the stored features differ "
                    f"from the stored logits by {difference:.1e} of the largest, expected {LOGIT_TOLERANCE:.0e} at most"
                )

    def raise_if_failed(self) -> None:
        """Raises CacheError naming damaged layers, or the first image whose difference exceeds rounding."""
        if self._error:
            raise self._error


def worst_logit_error(cache: RoICache) -> float | None:
    """Returns `LogitCheck.worst` of all images. Raises CacheError as `LogitCheck.raise_if_failed`, and for damage."""
    check = LogitCheck(cache)
    for rois in cache:
        check.add(rois)
    check.raise_if_failed()
    return check.worst


def layer_inputs(cache: RoICache, rois: RoIs, stage: int) -> np.ndarray:
    """Returns the input (R, …) of the first layer above the features; of hidden features their ReLU."""
    assert isinstance(rois.features, np.ndarray), "of a cache"
    features = rois.features[:, stage]
    return (
        np.maximum(features[:, : features.shape[1] - cache.num_directions], 0) if cache.level == "hidden" else features
    )


def forward(layers: Layers, features: np.ndarray) -> np.ndarray:
    """Returns logits (R, K+1) float32: features (R, …) through fully connected layers with ReLU between them."""
    x = features.reshape(len(features), -1).astype(np.float32)
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    weight, bias = layers[-1]
    return x @ weight.T + bias
