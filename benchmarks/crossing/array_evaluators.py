"""Evaluators that take arrays image by image, each as a function from `Inputs` to AP in points, used as documented.

They read federated data as if it were exhaustive, except for tidecv, which is given what its loader of LVIS reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.crossing.inputs import LVIS_LISTS, Inputs

ONLY_CAP = 100
"""Of torchmetrics, whose `map` is -1 for any other cap, and of supervision, which has no option for it."""


def torchmetrics(inputs: Inputs) -> float:
    """torchmetrics' `MeanAveragePrecision`, which takes tensors; NaN for a cap of which `map` is -1."""
    import torch
    from pycocotools import mask as rle
    from torchmetrics.detection import MeanAveragePrecision

    if inputs.cap != ONLY_CAP:
        return float("nan")

    def target(shapes: list[Any], labels: list[int], **columns: Any) -> dict[str, torch.Tensor]:
        key = "masks" if inputs.iou_type == "segm" else "boxes"
        if key == "masks":
            value = torch.from_numpy(np.array([rle.decode(s) for s in shapes], bool).reshape(len(shapes), *size))
        else:
            value = torch.tensor(np.array(shapes, np.float64).reshape(-1, 4))
        return {key: value, "labels": torch.tensor(labels, dtype=torch.long), **columns}

    metric = MeanAveragePrecision("xywh", inputs.iou_type, max_detection_thresholds=[1, 10, ONLY_CAP])
    metric.warn_on_many_detections = False
    shapes, found = inputs.gt_shapes(), inputs.detections
    own_shapes: Any = found.rles if inputs.iou_type == "segm" else found.xywh
    positions = inputs.positions()
    for image in inputs.content["images"]:
        size, index = (image["height"], image["width"]), positions[image["id"]]
        scores = {"scores": torch.from_numpy(found.scores[index])}
        metric.update(
            [target([own_shapes[i] for i in index], found.category_ids[index].tolist(), **scores)],
            [target([shape for _, shape in shapes[image["id"]]], [label for label, _ in shapes[image["id"]]])],
        )
    return 100 * float(metric.compute()["map"])


def supervision(inputs: Inputs) -> float:
    """supervision's `MeanAveragePrecision`, which takes masks or boxes; NaN for another cap than its own."""
    import supervision as package
    from pycocotools import mask as rle
    from supervision.metrics import MeanAveragePrecision, MetricTarget

    def decoded(shapes: list[Any]) -> np.ndarray | None:
        return np.array([rle.decode(shape) for shape in shapes], bool) if masks and shapes else None

    if inputs.cap != ONLY_CAP:
        return float("nan")
    masks = inputs.iou_type == "segm"
    metric = MeanAveragePrecision(metric_target=MetricTarget.MASKS if masks else MetricTarget.BOXES)
    found, objects, positions = inputs.detections, inputs.gt_shapes(), inputs.positions()
    boxes = inputs.gt_boxes()
    for image_id, index in positions.items():
        labels = np.array([label for label, _ in objects[image_id]], int)
        shapes = [shape for _, shape in objects[image_id]]
        metric.update(
            package.Detections(
                found.boxes[index].astype(np.float64),
                mask=decoded([found.rles[i] for i in index] if masks else []),
                confidence=found.scores[index],
                class_id=found.category_ids[index].astype(int),
            ),
            package.Detections(boxes[image_id], mask=decoded(shapes), class_id=labels),
        )
    return 100 * float(metric.compute().map50_95)


def tidecv(inputs: Inputs) -> float:
    """tidecv's AP over IoU 0.5 to 0.95; its cap is per image over all classes."""
    from tidecv import TIDE, Data

    name = "mask" if inputs.iou_type == "segm" else "box"
    gt, results = Data("gt", max_dets=inputs.cap), Data("results", max_dets=inputs.cap)
    objects = inputs.gt_shapes()
    every = {category["id"] for category in inputs.content["categories"]}
    for image in inputs.content["images"]:
        gt.add_image(image["id"], image.get("file_name", str(image["id"])))
        for label, shape in objects[image["id"]]:
            gt.add_ground_truth(image["id"], label, **{name: shape})
        if inputs.federated:  # as its loader: classes that are not verified, or not everywhere, are ignored
            verified = {label for label, _ in objects[image["id"]]} | set(image[LVIS_LISTS[0]])
            for label in [*sorted(every - verified), *image[LVIS_LISTS[1]]]:
                gt.add_ignore_region(image["id"], label)
    found, shapes = inputs.detections, inputs.shapes()
    for i, (image_id, label) in enumerate(zip(found.image_ids.tolist(), found.category_ids.tolist(), strict=True)):
        results.add_detection(image_id, label, float(found.scores[i]), **{name: shapes[i]})
    tide = TIDE(mode=TIDE.MASK if name == "mask" else TIDE.BOX)
    tide.evaluate_range(gt, results, mode=tide.mode)
    return float(np.mean([run.ap for run in tide.run_thresholds["results"]]))
