"""Overlaps of detections and ground truth, held equal to pycocotools, and the evaluation of several rows at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from fuse.detections import Detections
from fuse.evaluation import overlaps
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.ground_truth import GroundTruth
from fuse.evaluation.metrics import evaluate, evaluate_rows
from fuse.evaluation.overlaps import Candidates, overlaps_of_boxes, overlaps_of_masks

HEIGHT, WIDTH = 40, 60
CATEGORIES = [3, 8, 9]
CLASSES = pd.DataFrame(
    {"category_id": CATEGORIES, "name": list("abc"), "frequency": list("rcf"), "instance_count": [1, 20, 300]}
)


def encode(bitmap: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(bitmap, np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def bitmaps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rectangles, noise, the full image and nothing."""
    masks = np.zeros((count, HEIGHT, WIDTH), bool)
    for i, mask in enumerate(masks):
        (y, x), (h, w) = rng.integers(0, (HEIGHT, WIDTH)), rng.integers(1, 40, 2)
        mask[y : y + h, x : x + w] = rng.random() < 0.7 or rng.random(mask[y : y + h, x : x + w].shape) < 0.5
        mask |= i % 11 == 3
        mask &= i % 11 != 5
    return masks


@pytest.fixture(scope="module")
def content() -> dict:
    """Seven images with objects of three classes, a few of them crowd regions or of area 0."""
    rng = np.random.default_rng(0)
    images = [{"id": 7 * i + 2, "height": HEIGHT, "width": WIDTH} for i in range(7)]
    annotations = []
    for image in images[:-1]:
        for mask in bitmaps(rng, rng.integers(0, 30)):
            rle = encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(CATEGORIES)),
                    "segmentation": rle,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": float(coco_mask.area(rle)),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORIES, "abc", strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module")
def detections(content) -> Detections:
    rng = np.random.default_rng(1)
    masks = list(map(encode, bitmaps(rng, 300)))
    xywh = coco_mask.toBbox(masks)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    image_ids = rng.choice([image["id"] for image in content["images"]], len(masks))
    scores = rng.integers(1, 20, len(masks)).astype(np.float32) / 20
    return Detections(image_ids, rng.choice(CATEGORIES, len(masks)), scores, boxes, masks)


@pytest.mark.parametrize("block", [1, 40, 10_000])
def test_overlaps_equal_pycocotools(content, detections, block, monkeypatch):
    monkeypatch.setattr(overlaps, "BLOCK_PAIRS", block)
    gt = GroundTruth.from_dataset(load_annotations(content))
    cells = gt.cells_of(detections.image_ids, detections.category_ids)
    row = Candidates(detections, np.arange(len(detections)), cells)
    (masks,), boxes = overlaps_of_masks(gt, [row]), overlaps_of_boxes(gt, row)
    np.testing.assert_array_equal(masks.areas, [coco_mask.area(rle) for rle in detections.rles])
    compared = 0
    for i, cell in enumerate(cells):
        objects = np.flatnonzero(gt.cells == cell)
        if not len(objects):
            continue
        crowd = gt.crowd[objects].astype(int).tolist()
        expected = coco_mask.iou([detections.rles[i]], [gt.segmentations[g] for g in objects], crowd)[0]
        np.testing.assert_array_equal(masks.values[masks.places[i] :][: len(objects)], expected)
        expected = coco_mask.iou(detections.xywh[i : i + 1], gt.boxes[objects], crowd)[0]
        np.testing.assert_array_equal(boxes.values[boxes.places[i] :][: len(objects)], expected)
        compared += (expected > 0).sum()
    assert compared > 50


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_rows_are_evaluated_together_as_alone(content, detections, iou_type):
    """Rows that share masks, in another order and with other scores and classes; one is empty."""
    rng = np.random.default_rng(2)
    rows = {"all": detections, "none": detections.take(slice(0))}
    for i in range(3):
        part = detections.take(rng.permutation(len(detections))[:200])
        scores = rng.integers(1, 20, len(part)).astype(np.float32) / 20
        rows[str(i)] = replace(part, scores=scores, category_ids=rng.permutation(part.category_ids))
    tables = evaluate_rows(load_annotations(content), rows, CLASSES, iou_types=(iou_type,))
    for name, row in rows.items():
        alone = evaluate(content, row, CLASSES, iou_type=iou_type, engine="pycocotools")
        np.testing.assert_allclose(tables.summary.loc[iou_type, name], alone.loc[iou_type], rtol=0, atol=1e-9)


def test_a_mask_of_more_pixels_than_its_image_is_refused(content, detections):
    long = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.ones((50, 60), np.uint8, "F"))["counts"].decode()}
    rles = [long, *detections.rles[1:]]
    image = detections.image_ids[0]
    with pytest.raises(ValueError, match=f"^image {image}: a mask has 3000 pixels in its run lengths, expected 2400"):
        evaluate(content, replace(detections, rles=rles), CLASSES, iou_type="segm")
