"""`fuse.evaluate` against the same call with the official `lvis` package as its engine; AP is checked to be equal.

    python -m benchmarks.speed.evaluation

1,000 images of LVIS v0.5 val with their real classes and 300 detections each, of boxes and of masks. Half of the
detections lie on objects, a third of those with a wrong class; the others lie anywhere.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import tyro

from benchmarks.speed.inputs import SIZE, lvis_classes, lvis_pairs
from benchmarks.speed.measure import Result, Timing, peak_memory, result, save, seconds
from fuse.defaults import MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.metrics import per_class_ap
from fuse.ops.masks import encode_masks

DETECTIONS = MAX_DETECTIONS
NEGATIVES = 20  # classes of an image that are verified to be absent
ROUNDS = 3
TARGET = 30
"""Speed-up over the lvis package."""


def main(images: int = 1000) -> None:
    """Times the evaluation of boxes and of masks, and saves the results."""
    classes = lvis_classes()
    annotations = make_annotations(classes, images)
    save("evaluation", [time_evaluation(annotations, classes, iou_type) for iou_type in ("bbox", "segm")])


def time_evaluation(annotations: dict[str, Any], classes: pd.DataFrame, iou_type: str) -> Result:
    """Times hotcoco before and after the lvis package, which takes a minute and so runs once."""
    detections = make_detections(annotations, classes, masks=iou_type == "segm")
    tables: dict[str, pd.DataFrame] = {}
    times: dict[str, list[float]] = {"hotcoco": [], "lvis": []}
    memory: dict[str, int | None] = {}

    def evaluate(engine: str) -> None:
        tables[engine] = per_class_ap(annotations, detections, classes, iou_type=iou_type, engine=engine)

    def timed(engine: str) -> None:
        times[engine].append(seconds(lambda: evaluate(engine)))

    for engine in ("hotcoco", *["hotcoco"] * ROUNDS, "lvis", *["hotcoco"] * ROUNDS):
        memory[engine] = peak_memory(partial(timed, engine))
    pd.testing.assert_frame_equal(tables["hotcoco"], tables["lvis"], rtol=0, atol=1e-9)
    ours, theirs = float(np.median(times["hotcoco"][1:])), times["lvis"][0]
    timing = Timing(ours, theirs, theirs / ours, memory["hotcoco"], memory["lvis"])
    images, kind = len(annotations["images"]), {"bbox": "boxes", "segm": "masks"}[iou_type]
    case = f"evaluate, {images:,} images × {DETECTIONS} detections, {kind}"
    return result(case, "the lvis package", timing, "at_least", TARGET)


def make_annotations(classes: pd.DataFrame, images: int, seed: int = 0) -> dict[str, Any]:
    """Makes LVIS annotations of val's first images: their real classes, of each as many objects as in train."""
    rng = np.random.default_rng(seed)
    labels, positions, image_ids = lvis_pairs("val")
    instances_per_image = (classes["instance_count"] / classes["image_count"].clip(lower=1)).to_numpy()
    ids = classes["category_id"].to_numpy()
    image_records: list[dict[str, Any]] = []
    annotation_records: list[dict[str, Any]] = []
    for position, image_id in enumerate(image_ids[:images].tolist()):
        present = labels[positions == position]
        absent = np.setdiff1d(rng.choice(len(ids), NEGATIVES, replace=False), present)
        image_records.append(
            {
                "id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": ids[absent].tolist(),
                "not_exhaustive_category_ids": ids[present[rng.random(len(present)) < 0.1]].tolist(),
            }
        )
        objects = np.repeat(present, 1 + rng.poisson(instances_per_image[present] - 1))
        boxes = _random_boxes(rng, len(objects))
        for category_id, box in zip(ids[objects].tolist(), boxes.tolist(), strict=True):
            annotation_records.append(_annotation(len(annotation_records) + 1, image_id, category_id, box))
    categories = classes.rename(columns={"category_id": "id"})[["id", "name", "frequency"]].to_dict("records")
    return {"images": image_records, "annotations": annotation_records, "categories": categories}


def make_detections(annotations: dict[str, Any], classes: pd.DataFrame, masks: bool, seed: int = 1) -> Detections:
    """Makes detections of each image: half of them near its objects, a third of those with a wrong class."""
    rng = np.random.default_rng(seed)
    ids = classes["category_id"].to_numpy()
    objects = pd.DataFrame(annotations["annotations"])[["image_id", "category_id", "bbox"]]
    by_image = dict(list(objects.groupby("image_id")))
    parts = []
    for image in annotations["images"]:
        category_ids = rng.choice(ids, DETECTIONS)
        boxes = _random_boxes(rng, DETECTIONS)
        if (gt := by_image.get(image["id"])) is not None:
            chosen = rng.integers(len(gt), size=DETECTIONS // 2)
            xywh = np.array(gt["bbox"].tolist())[chosen]
            size = np.tile(xywh[:, 2:], 2)
            xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
            boxes[: len(chosen)] = xyxy + rng.normal(0, 0.1, size.shape) * size
            correct = rng.random(len(chosen)) < 2 / 3
            category_ids[: len(chosen)][correct] = gt["category_id"].to_numpy()[chosen[correct]]
        image_ids = np.full(DETECTIONS, image["id"])
        parts.append((image_ids, category_ids, rng.random(DETECTIONS) ** 3, _with_sorted_corners(boxes)))
    image_ids, category_ids, scores, boxes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    boxes = boxes.astype(np.float32)
    rles = encode_masks(np.full((len(boxes), 28, 28), 254, np.uint8), boxes, *SIZE) if masks else None
    return Detections(image_ids, category_ids.astype(np.int64), scores.astype(np.float32), boxes, rles)


def _annotation(annotation_id: int, image_id: int, category_id: int, box: list[float]) -> dict[str, Any]:
    """Returns an annotation record whose mask fills its box."""
    x1, y1, x2, y2 = box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
    }


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns (N, 4) xyxy."""
    height, width = SIZE
    corner = rng.random((count, 2)) * (width - 40, height - 40)
    size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    return np.concatenate([corner, np.minimum(corner + size, (width, height))], 1).round(2)


def _with_sorted_corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
