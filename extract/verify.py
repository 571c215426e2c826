"""Recomputes a cache's logits from its features."""

from __future__ import annotations

import numpy as np

from extract.cache.derived import LOGIT_TOLERANCE, classifier_columns, relative_error
from extract.cache.format import CacheError, Layers, layers_above
from extract.cache.projections import check_hidden
from extract.cache.reader import RoICache
from extract.cache.values import check_stored
from extract.rois import RoIs
from extract.utils.progress import progress_bar


def worst_logit_error(cache: RoICache) -> float | None:
    """Returns the largest difference between stored and recomputed logits, relative to the image's largest logit.

    None if the cache has no features, no fully connected layers or no logits. Reads every value and verifies all
    checksums.

    Raises CacheError naming the image if the difference exceeds rounding, or if a value is not valid.
    """
    stages = [feature_layers(cache, stage) for stage in range(len(cache.stages) if "logits" in cache.fields else 0)]
    if cache.level == "hidden":
        own = [cache.fc_layers(stage) for stage in range(len(cache.stages))]
        check_hidden(cache.url, cache.level, cache.fields["features"][-1], own, cache.projections, len(own))
    columns = classifier_columns(cache.class_map, cache.num_classes)
    worst: float | None = None
    for rois in progress_bar(cache, desc="verify", unit="image"):
        try:
            check_stored(rois, cache.fields)
        except CacheError as error:
            raise CacheError(f"{cache.url}: image {rois.image_id}: {error}") from None
        for stage, layers in enumerate(stages):
            if layers and len(rois):
                recomputed = forward(layers, layer_inputs(cache, rois, stage))[:, columns]
                difference = relative_error(rois.logits[:, stage, columns], recomputed)
                worst = max(worst or 0.0, difference)
                if difference > LOGIT_TOLERANCE:
                    raise CacheError(
                        f"{cache.url}: image {rois.image_id}: stage {stage}: logits of the stored features differ from "
                        f"the stored logits by {difference:.1e} of the largest, expected {LOGIT_TOLERANCE:.0e} at most"
                    )
    return worst


def feature_layers(cache: RoICache, stage: int) -> Layers:
    """Returns those of the detector's fully connected layers that apply to the stored features; [] if none does."""
    return layers_above(cache.level, cache.fc_layers(stage))


def layer_inputs(cache: RoICache, rois: RoIs, stage: int) -> np.ndarray:
    """Returns the input (R, …) of the first of `feature_layers`; of hidden features the ReLU of the pre-activations."""
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
