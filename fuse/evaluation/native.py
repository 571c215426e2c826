"""LVIS's and COCO's protocol by kernels of our own, for several rows at once: matches of detections with objects.

`accumulate` and `resampling` compute AP from them. The results are those of `lvis` and `pycocotools`, which the tests
hold them equal to. hotcoco computes the same for one row; rows of a sweep share most of their masks, whose overlaps are
computed once here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from extract.utils.prefetch import available_cpus, prefetch
from fuse.detections import Detections, best_first
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.ground_truth import GroundTruth, contains
from fuse.evaluation.overlaps import Candidates, Overlaps, overlaps_of_boxes, overlaps_of_masks
from fuse.ops.matching_kernels import match

T = TypeVar("T")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""In pixels: all, small, medium and large objects."""


class Matches(NamedTuple):
    """The N candidates of a row, matched with the G objects of the ground truth.

    A is 1, objects of all areas, or 4 as in `AREA_RANGES`; T are the IoU thresholds.

    Attributes:
        gt: the ground truth.
        candidates: the detections, by ascending cell, of each cell the best one first.
        scores: (N,) float32.
        outcomes: (A, T, N) uint8, outcomes of `match`.
        gt_ignored: (A, G) bool, objects that do not count.
        caps: on the detections of an image and class, at which recall is computed; 0 is no cap.
    """

    gt: GroundTruth
    candidates: Candidates
    scores: np.ndarray
    outcomes: np.ndarray
    gt_ignored: np.ndarray
    caps: tuple[int, ...]

    @property
    def cells(self) -> np.ndarray:
        """(N,) int64, ascending; of each cell the best detection first."""
        return self.candidates.cells

    def by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (N,) int64 positions by class, best first, equal scores by image; and (K+1,) where classes start."""
        num_classes = len(self.gt.category_ids)
        return order_by_class(self.cells % num_classes, self.scores, num_classes)


def lvis_matches(
    dataset: EvaluationDataset, rows: Sequence[Detections], iou_type: str, finish: Callable[[Matches], T]
) -> Iterator[T]:
    """Matches each row by LVIS's protocol, and yields what `finish` makes of the matches, in a thread.

    Args:
        dataset: of `load_annotations`.
        rows: detections, already capped per image.
        iou_type: "segm" or "bbox".
        finish: the matches of one row are dropped after it.
    """
    gt = GroundTruth.from_dataset(dataset)
    annotated = np.union1d(gt.cells, gt.cells_listed("neg_category_ids"))
    lenient = gt.cells_listed("not_exhaustive_category_ids")

    def select(row: Detections) -> Candidates:
        cells = gt.cells_of(row.image_ids, row.category_ids)
        return _by_cell(row, cells, contains(annotated, cells))

    def matched(one: Candidates, found: Overlaps) -> T:
        kept = found.areas > 0  # the official code leaves out detections without area
        overlaps = Overlaps(found.areas[kept], found.places[kept], found.values)
        return finish(_match(gt, one.take(kept), overlaps, lenient, AREA_RANGES[:1], (0,)))

    return _of_rows(gt, rows, iou_type, select, matched)


def coco_matches(
    dataset: EvaluationDataset,
    rows: Sequence[Detections],
    iou_type: str,
    caps: tuple[int, ...],
    finish: Callable[[Matches], T],
    every_class: bool = False,
) -> Iterator[T]:
    """Matches each row by COCO's protocol, and yields what `finish` makes of the matches, in a thread.

    Args:
        dataset: of `load_annotations`.
        rows: detections.
        iou_type: "segm" or "bbox".
        caps: on the detections of an image and class, ascending; recall is computed at each.
        finish: the matches of one row are dropped after it.
        every_class: keep the detections of classes without objects, which have no AP.
    """
    gt = GroundTruth.from_dataset(dataset)
    shown = (np.bincount(gt.classes, minlength=len(gt.category_ids)) > 0) | every_class

    def select(row: Detections) -> Candidates:
        cells = gt.cells_of(row.image_ids, row.category_ids)
        one = _by_cell(row, cells, shown[cells % len(gt.category_ids)])
        return one.take(ranks_in_cells(one.cells) < caps[-1])

    def matched(one: Candidates, found: Overlaps) -> T:
        return finish(_match(gt, one, found, np.empty(0, np.int64), AREA_RANGES, caps))

    return _of_rows(gt, rows, iou_type, select, matched)


def _of_rows(
    gt: GroundTruth,
    rows: Sequence[Detections],
    iou_type: str,
    select: Callable[[Detections], Candidates],
    matched: Callable[[Candidates, Overlaps], T],
) -> Iterator[T]:
    """Yields `matched` of each row, computed by one thread per CPU."""
    threads = available_cpus()
    candidates = list(prefetch(select, rows, threads=threads, depth=len(rows)))
    if iou_type == "segm":
        jobs = list(zip(candidates, overlaps_of_masks(gt, candidates), strict=True))
        yield from prefetch(lambda job: matched(*job), jobs, threads=threads, depth=threads)
    else:
        yield from prefetch(
            lambda one: matched(one, overlaps_of_boxes(gt, one)), candidates, threads=threads, depth=threads
        )


def _by_cell(detections: Detections, cells: np.ndarray, chosen: np.ndarray) -> Candidates:
    """Returns the detections that are `chosen` (N,) bool by ascending cell (N,), best first."""
    positions = np.flatnonzero(chosen)
    cells = cells[positions]
    order = best_first(cells, detections.scores[positions])
    return Candidates(detections, positions[order], cells[order])


def _match(
    gt: GroundTruth,
    candidates: Candidates,
    overlaps: Overlaps,
    lenient: np.ndarray,
    ranges: np.ndarray,
    caps: tuple[int, ...],
) -> Matches:
    """Returns the matches of a row; unmatched detections in the cells `lenient` are no mistakes."""
    cells = candidates.cells
    gt_ignored = gt.crowd | _outside(gt.areas, ranges)
    free = _outside(overlaps.areas, ranges) | contains(lenient, cells)
    outcomes = _outcomes(gt, cells, overlaps, gt_ignored, free)
    return Matches(gt, candidates, candidates.detections.scores[candidates.positions], outcomes, gt_ignored, caps)


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


def order_by_class(classes: np.ndarray, scores: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N,) int64 positions by class, best first, equal scores in their order; and (K+1,) where classes start.

    `classes` (N,) int64 are below `num_classes`, K; `scores` (N,) float.
    """
    order = best_first(classes, scores)
    return order, np.searchsorted(classes[order], np.arange(num_classes + 1))


def ranks_in_cells(cells: np.ndarray) -> np.ndarray:
    """Returns the rank (N,) int64 of each entry among those of its cell; `cells` (N,) ascending."""
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    return np.arange(len(cells)) - np.repeat(starts, np.diff(np.append(starts, len(cells))))
