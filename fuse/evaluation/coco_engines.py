"""The two engines of COCO's protocol, as functions of one signature.

`engine(dataset, detections, iou_type, max_detections) -> PrecisionRecall`. As in COCO's own code, the cap holds for the
detections of each image and class.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from extract.utils.optional import require
from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.engines import PrecisionRecall, detection_areas, hotcoco_inputs, result_records

RECALL_CAPS = (1, 10)
"""COCO reports AR at these caps, besides the cap of the evaluation."""


def hotcoco_coco_engine(
    dataset: EvaluationDataset, detections: Detections, iou_type: str, max_detections: int
) -> PrecisionRecall:
    """Runs hotcoco's `COCOeval`: the results of pycocotools, many times faster."""
    caps = recall_caps(max_detections)
    evaluation = hotcoco_coco_evaluation(dataset, detections, iou_type, caps)
    evaluation.accumulate()
    curves: Any = evaluation.eval
    return PrecisionRecall(curves["precision"][..., -1], curves["recall"], caps)


def hotcoco_coco_evaluation(
    dataset: EvaluationDataset, detections: Detections, iou_type: str, caps: tuple[int, ...]
) -> Any:
    """Returns hotcoco's `COCOeval` after `evaluate`."""
    import hotcoco

    gt, results = hotcoco_inputs(dataset, detections, iou_type)
    if iou_type == "segm" and detections.rles:  # pycocotools takes the areas of results without boxes from the masks
        ids = np.arange(1, len(detections) + 1)
        results.update_anns(ids=ids, area=detection_areas(detections, iou_type).astype(np.float64))
    evaluation = hotcoco.COCOeval(gt, results, iou_type)
    evaluation.params.max_dets = list(caps)
    evaluation.evaluate()
    return evaluation


def pycocotools_engine(
    dataset: EvaluationDataset, detections: Detections, iou_type: str, max_detections: int
) -> PrecisionRecall:
    """Runs the official `pycocotools`, which prints its progress to stdout; the output is discarded."""
    require("pycocotools.cocoeval", extra="lvis")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    caps = recall_caps(max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        gt, results = COCO(), COCO()
        gt.dataset = {**dataset, "annotations": [dict(a) for a in dataset["annotations"]]}  # it changes annotations
        gt.createIndex()
        if len(detections):
            results = gt.loadRes(result_records(detections, iou_type))
        else:  # loadRes fails without results
            results.dataset = {**dataset, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(gt, results, iou_type)
        evaluation.params.maxDets = list(caps)
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"][..., -1], evaluation.eval["recall"], caps)


COCO_ENGINES: dict[str, Callable[[EvaluationDataset, Detections, str, int], PrecisionRecall]] = {
    "hotcoco": hotcoco_coco_engine,
    "pycocotools": pycocotools_engine,
}


def recall_caps(max_detections: int) -> tuple[int, ...]:
    """Returns the caps at which AR is computed, ascending; the last is `max_detections`."""
    return (*(cap for cap in RECALL_CAPS if cap < max_detections), max_detections)
