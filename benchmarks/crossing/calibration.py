"""Evaluators of calibration, each as a function from `Inputs` to the expected calibration error (ECE).

A detection is right if COCO's matching at IoU 0.5 gives it an object of its class. Scores are put into `BINS` bins of
equal width; the error is the mean of |share of right detections - mean score| over bins, weighted by their detections.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from benchmarks.crossing.inputs import Inputs

BINS = 10


def formula(inputs: Inputs) -> float:
    """The definition (Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3)."""
    scores, right = _matches(inputs)
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    sums = [np.bincount(bins, weights, BINS) for weights in (scores, right.astype(float))]
    return float(np.abs(sums[0] - sums[1]).sum() / len(scores))


def hotcoco(inputs: Inputs) -> float:
    """hotcoco's `COCOeval.calibration`, by COCO's protocol."""
    import hotcoco as package

    gt = package.COCO(copy.deepcopy(inputs.content))
    evaluation = package.COCOeval(gt, gt.load_res(inputs.records()), inputs.iou_type)
    evaluation.params.max_dets = [1, 10, inputs.cap]
    evaluation.evaluate()
    return float(evaluation.calibration(n_bins=BINS, iou_threshold=0.5)["ece"])


def netcal(inputs: Inputs) -> float:
    """netcal's `ECE` with `detection=True`, on pycocotools' matches."""
    from netcal.metrics import ECE

    scores, right = _matches(inputs)
    return float(ECE(BINS, detection=True).measure(scores, right.astype(int)))


def _matches(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores (N,) float64 of the detections that pycocotools counts, and whether each is right (N,) bool."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gt = COCO()
    gt.dataset = copy.deepcopy(inputs.content)
    gt.createIndex()
    evaluation: Any = COCOeval(gt, gt.loadRes(inputs.records()), inputs.iou_type)
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.maxDets = [inputs.cap]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    cells = [cell for cell in evaluation.evalImgs if cell is not None]
    scores = np.concatenate([cell["dtScores"] for cell in cells])
    right, ignored = (np.concatenate([cell[key][0] for cell in cells]) > 0 for key in ("dtMatches", "dtIgnore"))
    return scores[~ignored], right[~ignored]
