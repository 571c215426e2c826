"""`python -m extract inspect | verify | export | import`."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from extract.cache import RoICache, open_cache
from extract.config import ExportConfig, ImportConfig, InspectConfig, VerifyConfig
from extract.convert import export_hdf5, import_hdf5
from extract.layout import CacheError, Layers

LOGIT_TOLERANCE = 2e-2
"""Largest difference, relative to an image's largest logit, that fp16 features and logits account for."""


def inspect(config: InspectConfig) -> None:
    """Prints what a cache holds."""
    cache = open_cache(config.cache)
    print(cache)
    print(cache.classes.groupby("frequency")[["image_count", "instance_count"]].agg(["count", "sum"]).to_string())


def verify(config: VerifyConfig) -> None:
    """Reads everything and compares logits; raises CacheError naming the image at the first fault."""
    cache = open_cache(config.cache)
    worst = worst_logit_error(cache)
    checked = "no features to recompute logits from" if worst is None else f"logits equal to within {worst:.1e}"
    print(f"{cache.url}: {len(cache):,} images, {int(cache.offsets[-1]):,} RoIs intact, {checked}")


def export_file(config: ExportConfig) -> None:
    """Cache → HDF5."""
    export_hdf5(open_cache(config.cache), config.file)


def import_file(config: ImportConfig) -> None:
    """HDF5 → cache."""
    print(import_hdf5(config.file, config.cache, config.overwrite))


def worst_logit_error(cache: RoICache) -> float | None:
    """Largest difference between stored logits and those that the detector's head gives for the stored features,
    relative to the image's largest logit; None if the cache has no features or no head.

    Raises CacheError naming the image if it is more than half floats account for, or if a value is not valid.
    """
    heads = [layers_on_features(cache, stage) for stage in range(len(cache.stages))]
    worst = None
    for rois in tqdm(cache, desc="verify", unit="image", disable=None):
        for field in cache.fields:
            values = getattr(rois, field)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise CacheError(f"{cache.url}: image {rois.image_id}: {field} hold values that are not finite")
        if rois.labels.size and (rois.labels.min() < -1 or rois.labels.max() > cache.num_classes):
            raise CacheError(f"{cache.url}: image {rois.image_id}: labels lie outside -1…{cache.num_classes}")
        for stage, layers in enumerate(heads):
            if layers and len(rois):
                stored = rois.logits[:, stage].astype(np.float32)
                error = np.abs(forward(layers, rois.features[:, stage]) - stored).max() / np.abs(stored).max()
                worst = max(worst or 0.0, float(error))
                if error > LOGIT_TOLERANCE:
                    raise CacheError(
                        f"{cache.url}: image {rois.image_id}: stage {stage}: logits of the stored features differ "
                        f"from the stored logits by {error:.1e} of the largest, expected {LOGIT_TOLERANCE:.0e} at most"
                    )
    return worst


def layers_on_features(cache: RoICache, stage: int) -> Layers:
    """The part of the detector's head that the stored features go through; [] if there is none."""
    layers = cache.head(stage)
    return layers if cache.level == "pooled" else layers[-1:] if cache.level == "embedding" else []


def forward(layers: Layers, features: np.ndarray) -> np.ndarray:
    """Logits (R, K+1) float32 of features (R, …) through fully connected layers with ReLU between them."""
    x = features.reshape(len(features), -1).astype(np.float32)
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    weight, bias = layers[-1]
    return x @ weight.T + bias
