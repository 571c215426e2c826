"""LVIS's and COCO's protocol by kernels of our own, for several rows at once.

The results are those of `lvis` and `pycocotools`, which the tests hold them equal to. hotcoco computes the same for one
row; rows of a sweep share most of their masks, whose overlaps are computed once here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from extract.utils.prefetch import available_cpus, prefetch
from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.engines import PrecisionRecall
from fuse.evaluation.ground_truth import GroundTruth, contains
from fuse.evaluation.overlaps import Candidates, Overlaps, overlaps_of_boxes, overlaps_of_masks
from fuse.ops.matching_kernels import match, precision_curves

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)
AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""In pixels: all, small, medium and large objects."""


def lvis_curves(dataset: EvaluationDataset, rows: Sequence[Detections], iou_type: str) -> Iterator[PrecisionRecall]:
    """Computes precision and recall of each row by LVIS's protocol.

    Args:
        dataset: of `load_annotations`.
        rows: detections, already capped per image.
        iou_type: "segm" or "bbox".
    """
    gt = GroundTruth.from_dataset(dataset)
    annotated = np.union1d(gt.cells, gt.cells_listed("neg_category_ids"))
    lenient = gt.cells_listed("not_exhaustive_category_ids")

    def select(row: Detections) -> Candidates:
        cells = gt.cells_of(row.image_ids, row.category_ids)
        return _by_cell(row, cells, contains(annotated, cells))

    def curves(one: Candidates, found: Overlaps) -> PrecisionRecall:
        kept = found.areas > 0  # the official code leaves out detections without area
        overlaps = Overlaps(found.areas[kept], found.places[kept], found.values)
        return _curves(gt, one.take(kept), overlaps, lenient, AREA_RANGES[:1], (0,))

    return _of_rows(gt, rows, iou_type, select, curves)


def coco_curves(
    dataset: EvaluationDataset, rows: Sequence[Detections], iou_type: str, caps: tuple[int, ...]
) -> Iterator[PrecisionRecall]:
    """Computes precision and recall of each row by COCO's protocol.

    Args:
        dataset: of `load_annotations`.
        rows: detections.
        iou_type: "segm" or "bbox".
        caps: on the detections of an image and class, ascending; recall is computed at each.
    """
    gt = GroundTruth.from_dataset(dataset)
    shown = np.bincount(gt.classes, minlength=len(gt.category_ids)) > 0  # other classes have no AP

    def select(row: Detections) -> Candidates:
        cells = gt.cells_of(row.image_ids, row.category_ids)
        one = _by_cell(row, cells, shown[cells % len(gt.category_ids)])
        return one.take(_ranks(one.cells) < caps[-1])

    def curves(one: Candidates, found: Overlaps) -> PrecisionRecall:
        return _curves(gt, one, found, np.empty(0, np.int64), AREA_RANGES, caps)

    return _of_rows(gt, rows, iou_type, select, curves)


def _of_rows(
    gt: GroundTruth,
    rows: Sequence[Detections],
    iou_type: str,
    select: Callable[[Detections], Candidates],
    curves: Callable[[Candidates, Overlaps], PrecisionRecall],
) -> Iterator[PrecisionRecall]:
    """Yields the curves of each row, computed by one thread per CPU."""
    threads = available_cpus()
    candidates = list(prefetch(select, rows, threads=threads, depth=len(rows)))
    if iou_type == "segm":
        jobs = list(zip(candidates, overlaps_of_masks(gt, candidates), strict=True))
        yield from prefetch(lambda job: curves(*job), jobs, threads=threads, depth=threads)
    else:
        yield from prefetch(
            lambda one: curves(one, overlaps_of_boxes(gt, one)), candidates, threads=threads, depth=threads
        )


def _by_cell(detections: Detections, cells: np.ndarray, chosen: np.ndarray) -> Candidates:
    """Returns the detections that are `chosen` (N,) bool by ascending cell (N,), best first."""
    positions = np.flatnonzero(chosen)
    cells = cells[positions]
    order = np.lexsort((-detections.scores[positions], cells))
    return Candidates(detections, positions[order], cells[order])


def _curves(
    gt: GroundTruth,
    candidates: Candidates,
    overlaps: Overlaps,
    lenient: np.ndarray,
    ranges: np.ndarray,
    caps: tuple[int, ...],
) -> PrecisionRecall:
    """Returns precision and recall of a row; unmatched detections in the cells `lenient` are no mistakes."""
    cells = candidates.cells
    gt_ignored = gt.crowd | _outside(gt.areas, ranges)
    free = _outside(overlaps.areas, ranges) | contains(lenient, cells)
    outcomes = _outcomes(gt, cells, overlaps, gt_ignored, free)
    num_classes = len(gt.category_ids)
    classes = cells % num_classes
    counts = np.stack([np.bincount(gt.classes[~ignored], minlength=num_classes) for ignored in gt_ignored])
    order = np.lexsort((-candidates.detections.scores[candidates.positions], classes))  # stable: ties by image
    starts = np.searchsorted(classes[order], np.arange(num_classes + 1))
    absent = np.where(counts.T > 0, 0.0, -1.0)
    shape = len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), *absent.shape
    precision = np.broadcast_to(absent, shape).copy()
    recall = np.repeat(np.broadcast_to(absent, (shape[0], *absent.shape))[..., None], len(caps), axis=3)
    points, limits = np.empty((2, len(cells))), np.array([cap or len(cells) for cap in caps], np.int64)
    precision_curves(
        starts, order, outcomes, counts, RECALL_THRESHOLDS, _ranks(cells), limits, points, precision, recall
    )
    return PrecisionRecall(precision, recall, caps)


def _outcomes(
    gt: GroundTruth, cells: np.ndarray, overlaps: Overlaps, gt_ignored: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Returns the outcomes (A, T, N) of `match`."""
    starts = np.append(np.flatnonzero(np.diff(cells, prepend=-1)), len(cells))
    first, last = (np.searchsorted(gt.cells, cells[starts[:-1]], side=side) for side in ("left", "right"))
    outcomes = np.empty((len(free), len(IOU_THRESHOLDS), len(cells)), np.uint8)
    taken = np.zeros(len(gt.cells), np.int64)
    objects, found = (first, last), (overlaps.places, overlaps.values)
    match(starts, *objects, *found, gt_ignored, gt.crowd, free, IOU_THRESHOLDS, taken, outcomes)
    return outcomes


def _outside(areas: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Returns (A, N) bool: whether areas (N,) are outside of ranges (A, 2)."""
    return (areas < ranges[:, :1]) | (areas > ranges[:, 1:])


def _ranks(cells: np.ndarray) -> np.ndarray:
    """Returns the rank (N,) int64 of each entry among those of its cell; `cells` (N,) ascending."""
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    return np.arange(len(cells)) - np.repeat(starts, np.diff(np.append(starts, len(cells))))
