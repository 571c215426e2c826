"""The two engines of LVIS's protocol, as functions of one signature.

`engine(dataset, detections, iou_type) -> PrecisionRecall`. Neither caps the number of detections. Crowd regions, which
LVIS's files do not have, are ignored as in COCO's protocol: they are no ground truth, and detections inside them are no
false positives.
"""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset

AREAS = ("", "s", "m", "l")
"""Suffixes of columns: objects of all areas, small ones (up to 32² pixels), medium ones (up to 96²), large ones."""


class PrecisionRecall(NamedTuple):
    """Precision and recall at the T IoU thresholds 0.50, 0.55 … 0.95; classes without ground truth have -1.

    A is 1, objects of all areas, or 4: all, small, medium and large ones. M is the number of caps on detections.

    Attributes:
        precision: (T, 101, K, A) float64, at 101 recall thresholds; classes by ascending category id.
        recall: (T, K, A, M) float64, the highest that is reached.
        caps: M ascending caps, the last of which is that of `precision`; (0,) where an engine has none.
    """

    precision: np.ndarray
    recall: np.ndarray
    caps: tuple[int, ...] = (0,)


def hotcoco_engine(dataset: EvaluationDataset, detections: Detections, iou_type: str) -> PrecisionRecall:
    """Runs hotcoco's `LVISeval`: the results of the official code, many times faster."""
    evaluation = hotcoco_lvis_evaluation(dataset, detections, iou_type)
    evaluation.accumulate()
    curves: Any = evaluation.eval
    return PrecisionRecall(curves["precision"][:, :, :, :1, 0], curves["recall"][:, :, :1, :1])


def hotcoco_lvis_evaluation(dataset: EvaluationDataset, detections: Detections, iou_type: str) -> Any:
    """Returns hotcoco's `COCOeval` of LVIS's protocol after `evaluate`."""
    import hotcoco

    detections = detections.take(_has_annotated_class(dataset, detections))
    detections = detections.take(detection_areas(detections, iou_type) > 0)  # as the official code, after the cap
    gt, results = hotcoco_inputs(dataset, detections, iou_type)
    evaluation = hotcoco.LVISeval(gt, results.cap_detections_per_image(None), iou_type)
    evaluation.evaluate()
    return evaluation


def lvis_engine(dataset: EvaluationDataset, detections: Detections, iou_type: str) -> PrecisionRecall:
    """Runs the official `lvis` package on current NumPy; does not change NumPy or the root logger."""
    lvis = import_lvis()
    gt = lvis.LVIS.__new__(lvis.LVIS)  # its constructor takes files only
    gt.logger = logging.getLogger("lvis.lvis")
    # lvis changes annotations; it knows `ignore`, but not `iscrowd`.
    gt.dataset = {**dataset, "annotations": [{**a, "ignore": a["iscrowd"]} for a in dataset["annotations"]]}
    gt._create_index()
    # lvis fails without results, and drops results without area.
    records = result_records(detections, iou_type) or [_empty_record(dataset, iou_type)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        results = lvis.LVISResults(gt, records, max_dets=-1)
    evaluation = lvis.LVISEval(gt, results, iou_type)
    evaluation.evaluate()
    _ignore_detections_in_crowds(evaluation, "segmentation" if iou_type == "segm" else "bbox")
    evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"][..., :1], evaluation.eval["recall"][..., :1, None])


LVIS_ENGINES: dict[str, Callable[[EvaluationDataset, Detections, str], PrecisionRecall]] = {
    "hotcoco": hotcoco_engine,
    "lvis": lvis_engine,
}


def import_lvis() -> Any:
    """Imports `lvis` with a NumPy that has the alias it needs. Raises ModuleNotFoundError naming the extra."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with _without_lvis_vis():
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


def _ignore_detections_in_crowds(evaluation: Any, shape: str) -> None:
    """Ignores unmatched detections that a crowd region covers by the IoU threshold, as COCO's protocol does.

    Args:
        evaluation: `LVISEval` between `evaluate` and `accumulate`. It has ignored the best match of each crowd region.
        shape: "segmentation" or "bbox", the field of annotations and results that is compared.
    """
    from pycocotools import mask

    thresholds = np.minimum(evaluation.params.iou_thrs, 1 - 1e-10)[:, None]
    for result in filter(None, evaluation.eval_imgs):
        pair = result["image_id"], result["category_id"]
        crowds = [gt[shape] for gt in evaluation._gts[pair] if gt["iscrowd"]]
        if crowds and result["dt_ids"]:
            shapes = {dt["id"]: dt[shape] for dt in evaluation._dts[pair]}
            # The share of the detection that the region covers takes the place of the IoU.
            covered = mask.iou([shapes[i] for i in result["dt_ids"]], crowds, [1] * len(crowds)).max(axis=1)
            result["dt_ignore"] |= (result["dt_matches"] == 0) & (covered >= thresholds)


def _has_annotated_class(dataset: EvaluationDataset, detections: Detections) -> np.ndarray:
    """Returns (N,) bool: whether a detection's class is annotated in its image, as present or as absent.

    LVIS evaluation ignores all other detections: most, at 300 per image.
    """
    image_ids, category_ids = (np.unique([r["id"] for r in dataset[key]]) for key in ("images", "categories"))

    def pair_index(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        return np.searchsorted(image_ids, images) * len(category_ids) + np.searchsorted(category_ids, categories)

    pairs = [(a["image_id"], a["category_id"]) for a in dataset["annotations"]]
    pairs += [(image["id"], category) for image in dataset["images"] for category in image["neg_category_ids"]]
    annotated = pair_index(*np.array(pairs, np.int64).reshape(-1, 2).T)
    return np.isin(pair_index(detections.image_ids, detections.category_ids), annotated)


def hotcoco_inputs(dataset: EvaluationDataset, detections: Detections, iou_type: str) -> tuple[Any, Any]:
    """Returns annotations and results as hotcoco's; the areas of the results are those of the boxes, masks or not."""
    import hotcoco

    dataset, detections = _with_exact_ids(dataset, detections)
    gt = hotcoco.COCO({**dataset})
    # Columns are faster than a record per detection.
    columns = (detections.image_ids, detections.xywh, detections.scores, detections.category_ids)
    rles: Any = detections.rles if iou_type == "segm" else None
    return gt, gt.load_res(np.column_stack(columns), segmentation=rles)


def _with_exact_ids(dataset: EvaluationDataset, detections: Detections) -> tuple[EvaluationDataset, Detections]:
    """Returns both with ranks in place of ids where float64, in which hotcoco takes columns, cannot hold the ids."""
    images, categories = (np.sort([record["id"] for record in dataset[key]]) for key in ("images", "categories"))
    if all(-(2**53) <= ids[0] and ids[-1] <= 2**53 for ids in (images, categories)):
        return dataset, detections
    ranks = [{int(value): rank for rank, value in enumerate(ids, 1)} for ids in (images, categories)]
    by_key = {"image_id": ranks[0], "category_id": ranks[1]}
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    ranked = dataset.with_sections(
        images=[
            {**image, "id": ranks[0][image["id"]], **{name: [ranks[1][c] for c in image[name]] for name in lists}}
            for image in dataset["images"]
        ],
        categories=[{**record, "id": ranks[1][record["id"]]} for record in dataset["categories"]],
        annotations=[{**a, **{key: rank[a[key]] for key, rank in by_key.items()}} for a in dataset["annotations"]],
    )
    columns = np.searchsorted(images, detections.image_ids), np.searchsorted(categories, detections.category_ids)
    return ranked, replace(detections, image_ids=columns[0] + 1, category_ids=columns[1] + 1)


def detection_areas(detections: Detections, iou_type: str) -> np.ndarray:
    """Returns (N,) areas, of boxes or masks."""
    if iou_type == "bbox" or not detections.rles:
        return np.prod(detections.boxes[:, 2:].astype(np.float64) - detections.boxes[:, :2], axis=1)
    import hotcoco

    return np.asarray(hotcoco.mask.area(detections.rles))


def result_records(detections: Detections, iou_type: str) -> list[dict]:
    """Returns results with masks or boxes, not both: given both, the official code takes a mask's area from its box."""
    shapes: list[dict]
    if iou_type == "segm":
        shapes = [{"segmentation": rle} for rle in detections.rles or []]
    else:
        shapes = [{"bbox": xywh} for xywh in detections.xywh.tolist()]
    columns = (detections.image_ids.tolist(), detections.category_ids.tolist(), detections.scores.tolist(), shapes)
    return [{"image_id": i, "category_id": c, "score": s, **shape} for i, c, s, shape in zip(*columns, strict=True)]


def _empty_record(dataset: EvaluationDataset, iou_type: str) -> dict:
    """Returns one LVIS result without area."""
    image = dataset["images"][0]
    record = {"image_id": image["id"], "category_id": dataset["categories"][0]["id"], "score": 0.0}
    if iou_type == "bbox":
        return {**record, "bbox": [0.0, 0.0, 0.0, 0.0]}
    from hotcoco import mask

    empty = mask.encode(np.zeros((image["height"], image["width"]), np.uint8, order="F"))
    return {**record, "segmentation": empty}


@contextmanager
def _without_lvis_vis() -> Iterator[None]:
    """Replaces `lvis.vis` while lvis is imported: it needs OpenCV, its system libraries and matplotlib."""
    if "lvis" in sys.modules:
        yield
        return
    stub: Any = types.ModuleType("lvis.vis")
    stub.LVISVis = None
    sys.modules["lvis.vis"] = stub
    try:
        yield
    finally:
        del sys.modules["lvis.vis"]
    lvis: Any = sys.modules["lvis"]
    del lvis.LVISVis  # a later `import lvis.vis` gets the real module


class _NumPyWithFloat:
    """NumPy with `np.float`, which lvis 0.5.3 uses and NumPy 1.24 removed."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
