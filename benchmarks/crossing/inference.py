"""The same checkpoint through its framework's own inference, and through this library live and from a cache.

    python -m benchmarks.crossing.inference                 # Mini-LVIS's detectors of all three frameworks
    python -m benchmarks.crossing.inference detectron2

Boxes of the first `IMAGES` images of Mini-LVIS val are compared at several score thresholds, at most 300 per image.
A detection of the framework is found if this library has one of its class, with corners within `PIXELS` and a score
within `SCORE`. A cache stores logits as half floats, so its scores differ by their rounding. Writes
`benchmarks/results/crossing_inference.csv`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import extract
from benchmarks.crossing.registry import RESULTS
from benchmarks.paper.inputs import load
from benchmarks.paper.setups import mini_lvis
from benchmarks.provenance import provenance
from benchmarks.speed.measure import merge_into
from extract.data.annotations import Annotations, read_annotations
from extract.data.images import read_image
from extract.detectors.base import Detector, Image, ImageDetections, reader_of
from extract.rois import RoIs
from fuse.config import FusionConfig
from fuse.defaults import MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.metrics import evaluate
from fuse.fusion import Fusion

FILE = RESULTS / "crossing_inference.csv"
KEYS = ["framework", "threshold", "path"]
IMAGES = 40
THRESHOLDS = (0.0, 1e-4, 0.05)
PIXELS, SCORE = 0.1, 0.01
DATA = Path("data/minilvis")
DETECTORS = {"torchvision": "plain", "detectron2": "cascade", "mmdet": "htc"}
PACKAGES = {"torchvision": "torchvision", "detectron2": "sal-detectron2", "mmdet": "mmdet"}


class Difference(NamedTuple):
    """How many of a framework's detections are found, and the largest difference between their scores."""

    found: int
    score: float


def main(frameworks: Sequence[str]) -> None:
    """Compares the frameworks, by default all, and saves a row for each threshold and path."""
    annotations = read_annotations(DATA / "val.json")
    classes = read_annotations(DATA / "train.json").classes
    for framework in frameworks or DETECTORS:
        rows = pd.DataFrame(compare(framework, annotations, classes)).assign(**provenance())
        rows = merge_into(FILE, rows, KEYS)
        rows.to_csv(FILE, index=False)
        print(rows[rows["framework"] == framework].to_string(index=False), flush=True)


def compare(framework: str, annotations: Annotations, classes: pd.DataFrame) -> list[dict[str, str | float]]:
    """Returns a framework's rows."""
    detector = load(mini_lvis(), DETECTORS[framework])
    images = read_images(annotations, detector)
    live = [detector.forward([image], "logits").rois[0] for image in images]
    paths = {"live": live, "cached": cached(live, classes, detector)}
    rows: list[dict[str, str | float]] = []
    for threshold in THRESHOLDS:
        own = [detector.own_inference(image, threshold) for image in images]  # type: ignore[attr-defined]
        config = FusionConfig(mode="original", score_threshold=threshold)
        fusion = Fusion.resolve(config, detector.description, classes["instance_count"].to_numpy())
        for path, rois in paths.items():
            ours = [fusion.detections(one) for one in rois]
            differences = [difference(a, b) for a, b in zip(own, ours, strict=True)]
            ap, own_ap = (box_ap(images, every, classes) for every in (ours, own))
            rows.append(
                {
                    "framework": framework,
                    "version": version(PACKAGES[framework]),
                    "threshold": threshold,
                    "path": path,
                    "images": len(images),
                    "own_detections": sum(len(one.scores) for one in own),
                    "detections": sum(len(one.scores) for one in ours),
                    "found": sum(one.found for one in differences),
                    "score_difference": max(one.score for one in differences),
                    "own_AP": round(own_ap, 3),
                    "AP": round(ap, 3),
                }
            )
    return rows


def read_images(annotations: Annotations, detector: Detector) -> list[Image]:
    """Reads the first `IMAGES` images as the detector's framework does."""
    images = []
    for i in range(IMAGES):
        size = int(annotations.heights[i]), int(annotations.widths[i])
        pixels = read_image(DATA / "val", annotations.file_names[i], size, reader_of(detector))
        images.append(Image(int(annotations.image_ids[i]), pixels))
    return images


def cached(rois: Sequence[RoIs], classes: pd.DataFrame, detector: Detector) -> list[RoIs]:
    """Returns RoIs as a cache stores them."""
    cache = extract.write_cache(
        "memory://crossing.zarr",
        rois,
        classes,
        split="val",
        level="logits",
        stages=detector.stages,
        detector=detector.description,
        overwrite=True,
    )
    return list(cache)


def difference(own: ImageDetections, ours: ImageDetections) -> Difference:
    """Compares one image's detections of the framework with this library's."""
    found, worst = 0, 0.0
    for box, label, score in zip(own.boxes, own.labels, own.scores, strict=True):
        near = (ours.labels == label) & (np.abs(ours.boxes - box).max(axis=1, initial=0) <= PIXELS)
        least = float(np.abs(ours.scores[near] - score).min(initial=np.inf))
        if least <= SCORE:
            found, worst = found + 1, max(worst, least)
    return Difference(found, worst)


def box_ap(images: Sequence[Image], every: Sequence[ImageDetections], classes: pd.DataFrame) -> float:
    """Returns box AP of the images' detections, in points."""
    ids = [image.image_id for image in images]
    category_ids = classes["category_id"].to_numpy(np.int64)
    best = [ImageDetections(*(column[:MAX_DETECTIONS] for column in one)) for one in every]
    detections = Detections.of_images(ids, best, category_ids)
    options = {"iou_type": "bbox", "image_ids": ids, "progress": False}
    return float(evaluate(DATA / "val.json", detections, classes, **options)["AP"].iloc[0])  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
