"""The field's evaluators of average precision, each as a function from `Inputs` to AP in points, used as documented.

COCO's evaluators read federated data as if it were exhaustive: that is what their users get. Where an evaluator has
options, they are those that come nearest to the dataset's protocol.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator
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


def torchmetrics(inputs: Inputs) -> float:
    """torchmetrics' `MeanAveragePrecision`, which takes tensors; cap by `max_detection_thresholds`."""
    import torch
    from pycocotools import mask as rle
    from torchmetrics.detection import MeanAveragePrecision

    def target(shapes: list[Any], labels: list[int], **columns: Any) -> dict[str, torch.Tensor]:
        key = "masks" if inputs.iou_type == "segm" else "boxes"
        if key == "masks":
            value = torch.from_numpy(np.array([rle.decode(s) for s in shapes], bool).reshape(len(shapes), *size))
        else:
            value = torch.tensor(np.array(shapes, np.float64).reshape(-1, 4))
        return {key: value, "labels": torch.tensor(labels, dtype=torch.long), **columns}

    metric = MeanAveragePrecision("xywh", inputs.iou_type, max_detection_thresholds=[1, 10, inputs.cap])
    metric.warn_on_many_detections = False
    shapes, found = _gt_shapes(inputs), inputs.detections
    own_shapes: Any = found.rles if inputs.iou_type == "segm" else found.xywh
    positions = inputs.positions()
    for image in inputs.content["images"]:
        size, index = (image["height"], image["width"]), positions[image["id"]]
        scores = {"scores": torch.from_numpy(found.scores[index])}
        metric.update(
            [target([own_shapes[i] for i in index], found.category_ids[index].tolist(), **scores)],
            [target([shape for _, shape in shapes[image["id"]]], [label for label, _ in shapes[image["id"]]])],
        )
    ap = float(metric.compute()["map"])
    return 100 * ap if ap > -1 else float("nan")  # -1 with a cap other than 100


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


def _gt_rles(inputs: Inputs) -> list[dict]:
    """Returns the masks of all annotations as run-length encodings."""
    from pycocotools.coco import COCO

    gt = COCO()
    gt.dataset = inputs.content
    gt.createIndex()
    return [gt.annToRLE(annotation) for annotation in inputs.content["annotations"]]


def _gt_shapes(inputs: Inputs) -> dict[int, list[tuple[int, Any]]]:
    """Returns the class and the mask or xywh box of each image's objects."""
    annotations = inputs.content["annotations"]
    every = _gt_rles(inputs) if inputs.iou_type == "segm" else [a["bbox"] for a in annotations]
    shapes: dict[int, list[tuple[int, Any]]] = {image["id"]: [] for image in inputs.content["images"]}
    for annotation, shape in zip(annotations, every, strict=True):
        shapes[annotation["image_id"]].append((annotation["category_id"], shape))
    return shapes


EVALUATORS: dict[str, tuple[str, Callable[[Inputs], float]]] = {
    "tailcal": ("tailcal", tailcal),
    "lvis": ("lvis", lvis),
    "hotcoco `LVISEval`": ("hotcoco", hotcoco_lvis),
    "faster-coco-eval `lvis_style`": ("faster-coco-eval", faster_coco_eval_lvis),
    "pycocotools": ("pycocotools", pycocotools),
    "hotcoco `COCOeval`": ("hotcoco", hotcoco),
    "faster-coco-eval": ("faster-coco-eval", faster_coco_eval),
    "torchmetrics": ("torchmetrics", torchmetrics),
}
"""Name → its package on PyPI and its function."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what evaluators print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
