"""`fuse.evaluate` against the same call with the official `lvis` package as its engine, and ten rows against one.

    python -m benchmarks.speed.evaluation

1,000 images of LVIS v0.5 val with their real classes and 300 detections each, of boxes and of masks. Half of the
detections lie on objects, a third of those with a wrong class; the others lie anywhere. The rows have scores of their
own and each 300 of 360 detections per image. AP is checked to be equal to lvis's, and of each row to hotcoco's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import tyro

from benchmarks.speed.inputs import SIZE, lvis_classes, lvis_pairs
from benchmarks.speed.measure import Result, Timing, compare, peak_memory, result, save, seconds
from fuse.defaults import BOOTSTRAP_SAMPLES, ENGINE, MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.compare import compare_rows
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate_rows, per_class_ap
from fuse.ops.masks import encode_masks

DETECTIONS = MAX_DETECTIONS
NEGATIVES = 20  # classes of an image that are verified to be absent
ROUNDS = 3
KINDS = {"bbox": "boxes", "segm": "masks"}
POOL = 360  # detections per image that rows draw from
TARGETS = {"bbox": 30, "segm": 60}
"""Speed-up over the lvis package."""
ROWS = 10
ROWS_TARGET = 3
"""Time of `ROWS` rows, by that of one."""
INTERVALS_TARGET = 10
"""Seconds of `ROWS` rows with intervals over images."""


def main(images: int = 1000) -> None:
    """Times the evaluation of boxes and of masks, and saves the results."""
    classes = lvis_classes()
    annotations = make_annotations(classes, images)
    for iou_type in ("bbox", "segm"):
        timed = (time_evaluation, time_rows, time_intervals)
        save("evaluation", [time(annotations, classes, iou_type) for time in timed])


def time_evaluation(annotations: dict[str, Any], classes: pd.DataFrame, iou_type: str) -> Result:
    """Times our engine before and after the lvis package, which takes a minute and so runs once."""
    detections = make_detections(annotations, classes, masks=iou_type == "segm")
    tables: dict[str, pd.DataFrame] = {}
    times: dict[str, list[float]] = {ENGINE: [], "lvis": []}
    memory: dict[str, int | None] = {}

    def evaluate(engine: str) -> None:
        tables[engine] = per_class_ap(annotations, detections, classes, iou_type=iou_type, engine=engine)

    def timed(engine: str) -> None:
        times[engine].append(seconds(lambda: evaluate(engine)))

    for engine in (ENGINE, *[ENGINE] * ROUNDS, "lvis", *[ENGINE] * ROUNDS):
        memory[engine] = peak_memory(partial(timed, engine))
    pd.testing.assert_frame_equal(tables[ENGINE], tables["lvis"], rtol=0, atol=1e-9)
    ours, theirs = float(np.median(times[ENGINE][1:])), times["lvis"][0]
    timing = Timing(ours, theirs, theirs / ours, memory[ENGINE], memory["lvis"])
    images, kind = len(annotations["images"]), KINDS[iou_type]
    case = f"evaluate, {images:,} images × {DETECTIONS} detections, {kind}"
    return result(case, "the lvis package", timing, "at_least", TARGETS[iou_type])


def time_rows(annotations: dict[str, Any], classes: pd.DataFrame, iou_type: str) -> Result:
    """Times ten rows against the first of them; each is checked against hotcoco."""
    dataset = load_annotations(annotations)
    rows = make_rows(make_detections(annotations, classes, iou_type == "segm", seed=2, count=POOL))

    def evaluate(names: list[str], engine: str = ENGINE) -> pd.DataFrame:
        chosen = {name: rows[name] for name in names}
        return evaluate_rows(dataset, chosen, classes, iou_types=(iou_type,), engine=engine).per_class

    pd.testing.assert_frame_equal(evaluate(list(rows)), evaluate(list(rows), "hotcoco"), rtol=0, atol=1e-9)
    timing = compare(partial(evaluate, list(rows)), partial(evaluate, ["0"]), ROUNDS)
    case = f"evaluate {ROWS} rows, {len(annotations['images']):,} images × {DETECTIONS} detections, {KINDS[iou_type]}"
    return result(case, "one row", timing, "at_most", ROWS_TARGET)


def time_intervals(annotations: dict[str, Any], classes: pd.DataFrame, iou_type: str) -> Result:
    """Times ten rows with 1,000 resamples of the images against the same without."""
    dataset = load_annotations(annotations)
    rows = make_rows(make_detections(annotations, classes, iou_type == "segm", seed=2, count=POOL))

    def evaluate(samples: int) -> None:
        compare_rows(dataset, rows, classes, iou_types=(iou_type,), samples=samples)

    timing = compare(partial(evaluate, BOOTSTRAP_SAMPLES), partial(evaluate, 0), ROUNDS)
    case = (
        f"intervals of {ROWS} rows, {len(annotations['images']):,} images × {DETECTIONS} detections, {KINDS[iou_type]}"
    )
    return result(case, "without intervals", timing, "seconds_at_most", INTERVALS_TARGET)


def make_rows(pool: Detections, seed: int = 3) -> dict[str, Detections]:
    """Makes rows of the best detections of each image, by scores that each row changes."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name in map(str, range(ROWS)):
        scores = (pool.scores * rng.uniform(0.5, 1, len(pool))).astype(np.float32)
        rows[name] = replace(pool, scores=scores).top_per_image(DETECTIONS)
    return rows


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


def make_detections(
    annotations: dict[str, Any], classes: pd.DataFrame, masks: bool, seed: int = 1, count: int = DETECTIONS
) -> Detections:
    """Makes detections of each image: half of them near its objects, a third of those with a wrong class."""
    rng = np.random.default_rng(seed)
    ids = classes["category_id"].to_numpy()
    objects = pd.DataFrame(annotations["annotations"])[["image_id", "category_id", "bbox"]]
    by_image = dict(list(objects.groupby("image_id")))
    parts = []
    for image in annotations["images"]:
        category_ids = rng.choice(ids, count)
        boxes = _random_boxes(rng, count)
        if (gt := by_image.get(image["id"])) is not None:
            chosen = rng.integers(len(gt), size=count // 2)
            xywh = np.array(gt["bbox"].tolist())[chosen]
            size = np.tile(xywh[:, 2:], 2)
            xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
            boxes[: len(chosen)] = xyxy + rng.normal(0, 0.1, size.shape) * size
            correct = rng.random(len(chosen)) < 2 / 3
            category_ids[: len(chosen)][correct] = gt["category_id"].to_numpy()[chosen[correct]]
        image_ids = np.full(count, image["id"])
        parts.append((image_ids, category_ids, rng.random(count) ** 3, _with_sorted_corners(boxes)))
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
