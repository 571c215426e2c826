"""A small RoI cache of a synthetic detector: features are class prototypes plus noise, its layers are random."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from extract import RoICache, RoIs, write_cache
from extract.cache.format import Layers, Projection
from extract.cache.manifest import MANIFEST, MANIFEST_SUM

CLASSES, CHANNELS, HIDDEN = 12, 3, 16


def toy_classes(num_classes: int = CLASSES) -> pd.DataFrame:
    """A class table: category ids have gaps, image and instance counts differ."""
    index = np.arange(num_classes)
    return pd.DataFrame(
        {
            "category_id": 3 * index + 2,
            "name": [f"class {i}" for i in index],
            "frequency": ["r"] * num_classes,
            "image_count": index + 1,
            "instance_count": (index + 1) ** 2,
        }
    )


def toy_layers(rng: np.random.Generator, stages: int) -> list[Layers]:
    """Random layers: per stage two hidden ones and a classifier."""
    widths = (CHANNELS * 49, HIDDEN, HIDDEN, CLASSES + 1)
    return [
        [
            ((rng.normal(size=(o, i)) / np.sqrt(i)).astype(np.float32), rng.normal(size=o).astype(np.float32))
            for i, o in pairwise(widths)
        ]
        for _ in range(stages)
    ]


def toy_projection(size: int, seed: int) -> Projection:
    """Random orthonormal directions, and a random center."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(CHANNELS * 49, size)))[0].T
    return Projection(directions.astype(np.float32), rng.normal(size=CHANNELS * 49).astype(np.float32))


def with_hidden_features(rois: RoIs, layers: list[Layers], projections: list[Projection]) -> RoIs:
    """RoIs with hidden features in place of pooled ones: the reference of `extract.hidden`."""
    features = []
    for stage, ((weight, bias), *_) in enumerate(layers):
        x = rois.features[:, stage].reshape(len(rois), -1).astype(np.float32)
        parts = [x @ weight.T + bias]
        parts += [(x - p.center) @ p.directions.T for p in projections[stage : stage + 1]]
        features.append(np.concatenate(parts, 1).astype(np.float16))
    return replace(rois, features=np.stack(features, 1))


def forward(layers: Layers, features: np.ndarray) -> np.ndarray:
    """The reference of a head: fully connected layers in float32 with ReLU between them."""
    out = features.reshape(len(features), -1).astype(np.float32)
    for depth, (weight, bias) in enumerate(layers):
        out = out @ weight.T + bias
        out = np.maximum(out, 0) if depth + 1 < len(layers) else out
    return out


def toy_cache(
    url: Path,
    level: str = "pooled",
    stages: tuple[float, ...] = (0.5,),
    images: int = 30,
    fc_layers: bool = True,
    average: str = "scores",
    seed: int = 0,
    split: str = "train",
    classes: pd.DataFrame | None = None,
    projection: int = 0,
    activation: str = "softmax",
) -> RoICache:
    """A cache with 30 RoIs per image: three ground-truth boxes, and of the others about half are foreground.

    At level "hidden" with random orthonormal directions, `projection` of them per stage.
    """
    rng = np.random.default_rng(seed)
    layers = toy_layers(rng, len(stages))
    prototypes = rng.normal(size=(CLASSES + 1, CHANNELS, 7, 7))
    rois = [_toy_image(rng, 100 + 7 * i, level, stages, layers, prototypes) for i in range(images)]
    projections = [toy_projection(projection, 50 + stage) for stage in range(len(stages))] if projection else []
    if level == "hidden":
        rois = [with_hidden_features(one, layers, projections) for one in rois]
    detector = {"name": "toy", "stage_average": average}
    if activation != "softmax":
        detector["activation"] = activation
    return write_cache(
        url,
        rois,
        toy_classes() if classes is None else classes,
        split=split,
        level=level,
        stages=stages,
        fc_layers=layers if fc_layers or level == "hidden" else [],
        projections=projections,
        detector=detector,
        overwrite=True,
    )


def _toy_image(
    rng: np.random.Generator,
    image_id: int,
    level: str,
    stages: tuple[float, ...],
    layers: list[Layers],
    prototypes: np.ndarray,
    size: int = 30,
) -> RoIs:
    present = rng.integers(0, CLASSES, 3)
    ious = np.repeat(rng.random((size, 1), np.float32), len(stages), axis=1)
    labels = np.where(ious >= np.array(stages), present[rng.integers(0, 3, size)][:, None], CLASSES)
    ious[:3], labels[:3] = 1, present[:, None]
    pooled = (prototypes[labels] + 0.5 * rng.normal(size=(size, len(stages), CHANNELS, 7, 7))).astype(np.float16)
    logits = np.stack([forward(own, pooled[:, s]) for s, own in enumerate(layers)], axis=1)
    embedding = [np.maximum(forward(own[:-1], pooled[:, s]), 0) for s, own in enumerate(layers)]
    features = {"pooled": pooled, "embedding": np.stack(embedding, axis=1).astype(np.float16), "logits": None}
    features["hidden"] = pooled
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (size, 1))
    return RoIs(
        image_id=image_id,
        height=50,
        width=60,
        proposals=np.repeat(boxes[:, None], len(stages), axis=1),
        boxes=boxes,
        logits=logits.astype(np.float16),
        objectness=np.ones(size, np.float32),
        features=features[level],
        labels=labels.astype(np.int32),
        ious=ious,
        gt_ids=np.zeros((size, len(stages)), np.int64),
        is_gt=np.arange(size) < 3,
    )


def change_attributes(url: str | Path, **changes: object) -> None:
    """Changes attributes of a cache as an earlier version, which wrote no manifest, would have written them."""
    attributes = zarr.open_group(url, mode="r+").attrs
    kept = {name: value for name, value in attributes.items() if name not in (MANIFEST, MANIFEST_SUM)}
    attributes.put(kept | changes)
