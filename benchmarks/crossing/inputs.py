"""One set of detections and two readings of Mini-LVIS's annotations, in the formats that evaluators take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import extract
from fuse.detections import Detections
from fuse.inference import detect

CACHE, ANNOTATIONS = "data/plain/val.zarr", Path("data/minilvis/val.json")
MAX_DETECTIONS = 300
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class Inputs:
    """What every evaluator gets.

    Attributes:
        content: of the annotation file; exhaustive data have no LVIS fields.
        federated: whether the file has LVIS's fields.
        classes: class table.
        detections: at most `MAX_DETECTIONS` per image.
        iou_type: "segm" or "bbox".
        cap: the evaluator's own cap on detections.
    """

    content: dict[str, list[dict]]
    federated: bool
    classes: pd.DataFrame
    detections: Detections
    iou_type: str
    cap: int

    @property
    def lvis_content(self) -> dict[str, list[dict]]:
        """The content with LVIS's fields: of exhaustive data, every class is verified in every image."""
        if self.federated:
            return self.content
        every = {category["id"] for category in self.content["categories"]}
        present: dict[int, set[int]] = {image["id"]: set() for image in self.content["images"]}
        for annotation in self.content["annotations"]:
            present[annotation["image_id"]].add(annotation["category_id"])
        fields = {"frequency": "f", "image_count": 1, "instance_count": 1}
        return {
            "images": [
                {**image, LVIS_LISTS[0]: sorted(every - present[image["id"]]), LVIS_LISTS[1]: []}
                for image in self.content["images"]
            ],
            "annotations": self.content["annotations"],
            "categories": [{**category, **fields} for category in self.content["categories"]],
        }

    def records(self) -> list[dict[str, Any]]:
        """Returns results with the mask or the box, not both: given both, areas of masks are those of boxes."""
        found = self.detections
        name = "segmentation" if self.iou_type == "segm" else "bbox"
        columns = found.image_ids.tolist(), found.category_ids.tolist(), found.scores.tolist(), self.shapes()
        keys = "image_id", "category_id", "score", name
        return [dict(zip(keys, record, strict=True)) for record in zip(*columns, strict=True)]

    def shapes(self) -> list[Any]:
        """Returns the mask, as a run-length encoding, or the xywh box of each detection."""
        return list(self.detections.rles) if self.iou_type == "segm" else self.detections.xywh.tolist()

    def gt_shapes(self) -> dict[int, list[tuple[int, Any]]]:
        """Returns the class, and the mask or xywh box, of each image's objects."""
        annotations = self.content["annotations"]
        every = self._gt_rles() if self.iou_type == "segm" else [a["bbox"] for a in annotations]
        shapes: dict[int, list[tuple[int, Any]]] = {image["id"]: [] for image in self.content["images"]}
        for annotation, shape in zip(annotations, every, strict=True):
            shapes[annotation["image_id"]].append((annotation["category_id"], shape))
        return shapes

    def gt_boxes(self) -> dict[int, np.ndarray]:
        """Returns the boxes (G, 4) float64 xyxy of each image's objects, in the order of `gt_shapes`."""
        boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in self.content["images"]}
        for annotation in self.content["annotations"]:
            x, y, w, h = annotation["bbox"]
            boxes[annotation["image_id"]].append([x, y, x + w, y + h])
        return {image_id: np.array(every, np.float64).reshape(-1, 4) for image_id, every in boxes.items()}

    def _gt_rles(self) -> list[dict]:
        """Returns the masks of all annotations as run-length encodings."""
        from pycocotools.coco import COCO

        gt = COCO()
        gt.dataset = self.content
        gt.createIndex()
        return [gt.annToRLE(annotation) for annotation in self.content["annotations"]]

    def positions(self) -> dict[int, np.ndarray]:
        """Returns the positions of each image's detections, best first; equal scores in the order of the results."""
        order = np.lexsort((-self.detections.scores, self.detections.image_ids))
        image_ids = [image["id"] for image in self.content["images"]]
        ranked = self.detections.image_ids[order]
        return {i: order[np.searchsorted(ranked, i) : np.searchsorted(ranked, i, "right")] for i in image_ids}


def make_inputs(cache_url: str = CACHE, annotations: Path = ANNOTATIONS, images: int | None = None) -> list[Inputs]:
    """Returns the original detector's detections with both readings of the annotations, IoU types and caps.

    Args:
        cache_url: of the val cache.
        annotations: LVIS file of its images.
        images: the first so many; None for all.
    """
    cache = extract.open_cache(cache_url)
    detections = detect(cache, mode="original", score_threshold=0.0, max_detections=MAX_DETECTIONS)
    federated = json.loads(annotations.read_text())
    federated["images"] = federated["images"][:images]
    image_ids = {image["id"] for image in federated["images"]}
    federated["annotations"] = [one for one in federated["annotations"] if one["image_id"] in image_ids]
    detections = detections.take(np.isin(detections.image_ids, list(image_ids)))
    for annotation in federated["annotations"]:
        annotation.setdefault("iscrowd", 0)
    exhaustive = {
        "images": [{k: v for k, v in image.items() if k not in LVIS_LISTS} for image in federated["images"]],
        "annotations": federated["annotations"],
        "categories": [{"id": c["id"], "name": c["name"]} for c in federated["categories"]],
    }
    return [
        Inputs(content, content is federated, cache.classes, detections, iou_type, cap)
        for content in (federated, exhaustive)
        for iou_type in ("segm", "bbox")
        for cap in (MAX_DETECTIONS, 100)
    ]
