"""The two engines of LVIS evaluation behind one signature.

`engine(dataset, detections, iou_type) -> precision (T, 101, K), recall (T, K)` float64 for the thresholds
0.50, 0.55 … 0.95 and classes by ascending category id; -1 for ones without ground truth. No cap is applied.
"""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fuse.detections import Detections


def hotcoco_engine(dataset: dict, detections: Detections, iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """hotcoco's `LVISeval`, many times faster than the official code and equal to it."""
    import hotcoco

    detections = detections.take(_judged(dataset, detections))
    detections = detections.take(_areas(detections, iou_type) > 0)
    truth = hotcoco.COCO({**dataset})
    columns = (detections.image_ids, detections.xywh, detections.scores, detections.category_ids)
    # Columns instead of a record for each detection; the area, of the box, only matters to size bins, not read here.
    results = truth.load_res(np.column_stack(columns), segmentation=detections.rles if iou_type == "segm" else None)
    evaluation = hotcoco.LVISeval(truth, results.cap_detections_per_image(None), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0], evaluation.eval["recall"][:, :, 0, 0]


def lvis_engine(dataset: dict, detections: Detections, iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """The official `lvis` package, on current NumPy; leaves NumPy and the root logger as they were."""
    lvis = _import_lvis()
    truth = lvis.LVIS.__new__(lvis.LVIS)  # its constructor reads a file only
    truth.logger = logging.getLogger("lvis.lvis")
    truth.dataset = {**dataset, "annotations": [dict(a) for a in dataset["annotations"]]}  # it writes into them
    truth._create_index()
    records = _records(detections, iou_type)
    if not records:  # it fails on no results; one below every other, without area, is left out again by it
        records = [_nothing(dataset, iou_type)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        results = lvis.LVISResults(truth, records, max_dets=-1)
    evaluation = lvis.LVISEval(truth, results, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]


ENGINES = {"hotcoco": hotcoco_engine, "lvis": lvis_engine}


def _judged(dataset: dict, detections: Detections) -> np.ndarray:
    """(N,) bool: of classes that the image is annotated for, present or absent. The protocol ignores all others, which
    at 300 an image are most."""
    image_ids, category_ids = (np.unique([r["id"] for r in dataset[key]]) for key in ("images", "categories"))

    def keys(images: np.ndarray | list[int], categories: np.ndarray | list[int]) -> np.ndarray:
        return np.searchsorted(image_ids, images) * len(category_ids) + np.searchsorted(category_ids, categories)

    pairs = [(a["image_id"], a["category_id"]) for a in dataset["annotations"]]
    pairs += [(image["id"], category) for image in dataset["images"] for category in image["neg_category_ids"]]
    annotated = keys(*np.array(pairs, np.int64).reshape(-1, 2).T)
    return np.isin(keys(detections.image_ids, detections.category_ids), annotated)


def _areas(detections: Detections, iou_type: str) -> np.ndarray:
    """(N,) areas; the official evaluation leaves out what has none, after the cap."""
    if iou_type == "bbox" or not len(detections):
        return np.prod(detections.boxes[:, 2:].astype(np.float64) - detections.boxes[:, :2], axis=1)
    import hotcoco

    return hotcoco.mask.area(detections.rles)


def _records(detections: Detections, iou_type: str) -> list[dict]:
    """Result records with masks or boxes, not both: the official code would take a mask's area from its box."""
    ids = zip(detections.image_ids.tolist(), detections.category_ids.tolist(), detections.scores.tolist(), strict=True)
    if iou_type == "segm":
        shapes = [{"segmentation": rle} for rle in detections.rles or []]
    else:
        shapes = [{"bbox": xywh} for xywh in detections.xywh.tolist()]
    return [
        {"image_id": i, "category_id": c, "score": s, **shape} for (i, c, s), shape in zip(ids, shapes, strict=True)
    ]


def _nothing(dataset: dict, iou_type: str) -> dict:
    image = dataset["images"][0]
    record = {"image_id": image["id"], "category_id": dataset["categories"][0]["id"], "score": 0.0}
    if iou_type == "bbox":
        return {**record, "bbox": [0.0, 0.0, 0.0, 0.0]}
    from hotcoco import mask

    empty = mask.encode(np.zeros((image["height"], image["width"]), np.uint8, order="F"))
    return {**record, "segmentation": empty}


@contextmanager
def _without_drawing() -> Iterator[None]:
    """Lets `lvis` be imported without its drawing, which needs OpenCV, its system libraries and matplotlib."""
    if "lvis" in sys.modules:
        yield
        return
    stand_in = types.ModuleType("lvis.vis")
    stand_in.LVISVis = None
    sys.modules["lvis.vis"] = stand_in
    try:
        yield
    finally:
        del sys.modules["lvis.vis"]
    del sys.modules["lvis"].LVISVis  # a later `import lvis.vis` gets the real one


class _NumPyWithFloat:
    """NumPy as `lvis` 0.5.3 knows it, with the alias that NumPy 1.24 took away."""

    float = float

    def __getattr__(self, name: str):
        return getattr(np, name)


def _import_lvis():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with _without_drawing():
            import lvis
            import lvis.eval
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"engine 'lvis': {error}; pip install 'tailcal[lvis]'") from None
    finally:
        root.handlers[:], root.level = handlers, level
    lvis.eval.np = _NumPyWithFloat()
    for name in ("lvis.lvis", "lvis.results", "lvis.eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return lvis
