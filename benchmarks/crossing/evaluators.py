"""Evaluators that take files in COCO's format, each as a function from `Inputs` to AP in points, used as documented.

COCO's evaluators read federated data as if it were exhaustive: that is what their users get. Where an evaluator has
options, they are those that come nearest to the dataset's protocol.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from benchmarks.crossing.inputs import Inputs
from fuse.evaluation.engines import import_lvis
from fuse.evaluation.metrics import evaluate


def tailcal(inputs: Inputs) -> float:
    """This library, by the dataset's protocol."""
    options = {"iou_type": inputs.iou_type, "max_detections": inputs.cap}
    return float(evaluate(inputs.content, inputs.detections, inputs.classes, **options)["AP"].iloc[0])


def lvis(inputs: Inputs) -> float:
    """The official package of LVIS. It needs `np.float`, and boxes to be absent for areas of masks."""
    package = import_lvis()
    gt = package.LVIS.__new__(package.LVIS)  # its constructor takes files only
    gt.logger = package.lvis.logging.getLogger("lvis.lvis")
    gt.dataset = copy.deepcopy(inputs.lvis_content)
    gt._create_index()
    results = package.LVISResults(gt, inputs.records(), max_dets=inputs.cap)
    evaluation = package.LVISEval(gt, results, inputs.iou_type)
    evaluation.run()
    return 100 * float(evaluation.results["AP"])


def pycocotools(inputs: Inputs) -> float:
    """The official package of COCO."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gt = COCO()
    gt.dataset = copy.deepcopy(inputs.content)
    gt.createIndex()
    return _coco_ap(COCOeval(gt, gt.loadRes(inputs.records()), inputs.iou_type), inputs)


def hotcoco(inputs: Inputs) -> float:
    """hotcoco by COCO's protocol."""
    import hotcoco as package

    gt = package.COCO(copy.deepcopy(inputs.content))
    return _coco_ap(package.COCOeval(gt, gt.load_res(inputs.records()), inputs.iou_type), inputs, "max_dets")


def hotcoco_lvis(inputs: Inputs) -> float:
    """hotcoco by LVIS's protocol."""
    import hotcoco as package

    gt = package.COCO(copy.deepcopy(inputs.lvis_content))
    results = gt.load_res(inputs.records()).cap_detections_per_image(inputs.cap)
    evaluation = package.LVISEval(gt, results, inputs.iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return _mean_precision(evaluation.eval["precision"][:, :, :, 0, 0])


def faster_coco_eval(inputs: Inputs) -> float:
    """faster-coco-eval by COCO's protocol."""
    return _coco_ap(_faster(inputs, inputs.content), inputs)


def faster_coco_eval_lvis(inputs: Inputs) -> float:
    """faster-coco-eval with `lvis_style`."""
    return _coco_ap(_faster(inputs, inputs.lvis_content, lvis_style=True), inputs)


def _faster(inputs: Inputs, content: dict[str, list[dict]], **options: Any) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    gt = COCO(copy.deepcopy(content))
    return COCOeval_faster(gt, gt.loadRes(inputs.records()), inputs.iou_type, print_function=lambda *_: None, **options)


def _coco_ap(evaluation: Any, inputs: Inputs, caps: str = "maxDets") -> float:
    """Runs a `COCOeval` with the cap, and returns AP in points: the mean of precision that is not -1.

    `caps` is the parameter's name.
    """
    setattr(evaluation.params, caps, [1, 10, inputs.cap])
    evaluation.evaluate()
    evaluation.accumulate()
    return _mean_precision(np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1])


def _mean_precision(precision: np.ndarray) -> float:
    return 100 * float(precision[precision > -1].mean())
