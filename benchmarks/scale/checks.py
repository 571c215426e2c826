"""What only shows at size: missing images and classes, rounding of half floats, and the order of float sums.

The features of a cache are half floats. Their logits are compared with the detector's own, and so is the AP of a head
that was trained on them: from the cache, and live on the same images. Two heads are trained from one seed, the second
with sums in another order, as on another CPU: rounding differs from the first step on, and grows.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import calib
import extract
import fuse
from benchmarks.scale.dataset import IMAGES, file_name
from benchmarks.scale.detector import DETECTOR
from extract.cache.reader import RoICache
from extract.config import DetectorSpec
from extract.data.decoding import decode_image
from extract.detectors import load_detector
from extract.detectors.base import Image, ImageDetections
from extract.hidden import Forward, forward_at_level
from extract.rois import RoIs
from fuse.defaults import MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.metrics import evaluate, evaluate_rows

OTHER_HEAD = "head_avx2"
COMPARED_IMAGES = 200
"""Of val, evenly spread, that are detected live."""


class Check(NamedTuple):
    """A figure, and the one that it is compared with, of which a difference has 0."""

    check: str
    value: float
    other: float


def check(out: Path) -> list[Check]:
    """Compares what the commands wrote in a folder. Raises AssertionError, naming what does not hold."""
    train, val = (extract.open_cache(str(out / f"{split}.zarr")) for split in IMAGES)
    annotations = load_annotations(out / "data" / "val.json")
    return [
        Check("classes with RoIs in train", count_classes(train), train.num_classes),
        Check("images of val", len(val), count_images(val, annotations)),
        *compare_engines(val, annotations, out),
        *compare_live(val, annotations, out),
        *compare_heads(val, annotations, out),
    ]


def count_classes(train: RoICache) -> int:
    """Returns how many classes have foreground RoIs; expects all of them."""
    labels = train.read("labels")[:, 0]
    found = len(np.unique(labels[(labels >= 0) & (labels < train.num_classes)]))
    assert found == train.num_classes, f"{train.num_classes - found} classes have no RoIs"
    return found


def count_images(val: RoICache, annotations: EvaluationDataset) -> int:
    """Returns the number of images in the annotations; expects the cache to have the same."""
    ids = sorted(image["id"] for image in annotations["images"])
    assert val.images["image_id"].tolist() == ids, "images of val are missing"
    return len(ids)


def compare_engines(val: RoICache, annotations: EvaluationDataset, out: Path) -> list[Check]:
    """Evaluates the written detections with both engines; expects the same AP."""
    detections = Detections.from_json(out / "run" / "detections.json")
    options = {"iou_types": ("bbox",), "max_detections": MAX_DETECTIONS}
    native, other = (
        evaluate_rows(annotations, {"cat": detections}, val.classes, engine=engine, **options).summary["AP"].item()
        for engine in ("native", "hotcoco")
    )
    assert abs(native - other) < 1e-9, f"AP is {native} by the native engine, {other} by hotcoco"
    return [Check("box AP by the native engine, by hotcoco", native, other)]


def compare_live(val: RoICache, annotations: EvaluationDataset, out: Path) -> list[Check]:
    """Compares logits and AP from the cache's half floats with those from the detector's features."""
    options = (f"num_classes={val.num_classes}",)
    detector = load_detector(DetectorSpec(DETECTOR, out / "detector.safetensors", None, options, device="cpu"))
    fusion, forward = fuse.CalibratedDetector(detector, out / "head").fusion, forward_at_level(detector, "hidden")
    positions = np.linspace(0, len(val) - 1, min(COMPARED_IMAGES, len(val))).astype(int).tolist()
    worst, found = 0.0, ([], [])
    for position in positions:
        stored = val[position]
        live = live_rois(forward, stored, int(val.images["image_id"].iloc[position]), out)
        error = np.abs(stored.logits.astype(np.float32) - live.logits).max() / np.abs(live.logits).max()
        worst = max(worst, float(error))
        for images, rois in zip(found, (stored, live), strict=True):
            images.append(fusion.detections(rois))
    image_ids = val.images["image_id"].to_numpy()[positions].tolist()
    cached_ap, live_ap = (box_ap(image_ids, images, val, annotations) for images in found)
    return [
        Check("largest error of computed logits, relative to an image's largest", worst, 0.0),
        Check(f"box AP of {len(positions)} images from the cache, live", cached_ap, live_ap),
    ]


def live_rois(forward: Forward, stored: RoIs, image_id: int, out: Path) -> RoIs:
    """Returns the detector's RoIs of an image, as many as are stored."""
    pixels = decode_image(out / "data" / "val2017" / file_name(image_id))
    first = np.arange(len(stored)), np.empty((0, 4), np.float32)
    (rois,) = forward([Image(image_id, pixels)], lambda *_: first).rois
    return rois


def box_ap(image_ids: list[int], images: list[ImageDetections], val: RoICache, annotations: EvaluationDataset) -> float:
    """Returns box AP of some images' detections, in points."""
    detections = Detections.of_images(image_ids, images, val.classes["category_id"].to_numpy(np.int64))
    table = evaluate(annotations, detections, val.classes, iou_type="bbox", image_ids=image_ids)
    return float(table["AP"].iloc[0])


def compare_heads(val: RoICache, annotations: EvaluationDataset, out: Path) -> list[Check]:
    """Compares the weights and the AP of both heads."""
    heads = [calib.load_head(out / name) for name in ("head", OTHER_HEAD)]
    states = [head.state_dict() for head in heads]
    apart = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
    largest = max(float(tensor.abs().max()) for tensor in states[0].values())
    aps = [
        float(evaluate(annotations, fuse.detect(val, head), val.classes, iou_type="bbox")["AP"].iloc[0])
        for head in heads
    ]
    return [
        Check("largest difference of weights between sums in two orders, largest weight", apart, largest),
        Check("box AP of a head, of another with sums in another order", *aps),
    ]
