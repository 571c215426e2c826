"""Overlaps of detections with the ground truth of their image and class.

Rows of a sweep detect the same RoIs: the overlaps of a mask, an image and a class are computed once for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from extract.utils.prefetch import available_cpus
from fuse.detections import Detections
from fuse.evaluation.ground_truth import GroundTruth
from fuse.ops.matching_kernels import box_overlaps
from fuse.ops.rle_kernels import decode_runs, mask_overlaps

BLOCK_PAIRS = 4096
"""Masks that are decoded at a time, at least; whole images."""


class Overlaps(NamedTuple):
    """Overlaps of the N candidates of a row.

    Attributes:
        areas: (N,) float64, of the candidates.
        places: (N,) int64; the overlaps of a candidate with the ground truth of its cell start there in `values`.
        values: float64, IoU, or the share of the candidate inside a crowd region.
    """

    areas: np.ndarray
    places: np.ndarray
    values: np.ndarray


class Candidates(NamedTuple):
    """N detections that are evaluated: their positions (N,) in `detections`, and their cells (N,)."""

    detections: Detections
    positions: np.ndarray
    cells: np.ndarray

    def take(self, kept: np.ndarray) -> Candidates:
        """Returns those that are `kept` (N,) bool."""
        return Candidates(self.detections, self.positions[kept], self.cells[kept])


def overlaps_of_boxes(gt: GroundTruth, candidates: Candidates, whole_images: bool = False) -> Overlaps:
    """Returns the overlaps of the boxes of a row, with `whole_images` those with all objects of their image."""
    boxes = candidates.detections.boxes[candidates.positions].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    first, offsets = ground_truth_of(gt, candidates.cells, whole_images)
    values = np.empty(offsets[-1])
    box_overlaps(boxes, gt.boxes, first, offsets, gt.crowd, values)
    return Overlaps(boxes[:, 2] * boxes[:, 3], offsets[:-1], values)


def overlaps_of_masks(gt: GroundTruth, rows: Sequence[Candidates], whole_images: bool = False) -> list[Overlaps]:
    """Returns the overlaps of the masks of each row, with `whole_images` those with all objects of their image.

    Raises ValueError for a run-length encoding of more pixels than its image has.
    """
    rles = [row.detections.rles or [] for row in rows]
    chosen: list[dict] = [one[i] for row, one in zip(rows, rles, strict=True) for i in row.positions.tolist()]
    _, unique, mask = np.unique(np.fromiter(map(id, chosen), np.int64, len(chosen)), True, True)
    cells = np.concatenate([row.cells for row in rows])
    keys, pair = np.unique(cells * len(unique) + mask, return_inverse=True)  # ascending cells: image by image
    own, masks = np.divmod(keys, max(len(unique), 1))
    pairs = _Pairs(gt, own, masks, [chosen[i] for i in unique.tolist()], whole_images)
    images = pairs.cells // len(gt.category_ids)
    ends = np.flatnonzero(np.diff(images, append=-1)) + 1
    wanted = np.append(np.arange(BLOCK_PAIRS, len(images), BLOCK_PAIRS), len(images) - 1)
    bounds = [0, *np.unique(ends[np.searchsorted(ends, wanted)]).tolist()] if len(ends) else [0]
    with ThreadPoolExecutor(available_cpus()) as pool:
        list(pool.map(pairs.compute, bounds[:-1], bounds[1:]))
    split = np.split(pair, np.cumsum([len(row.positions) for row in rows])[:-1])
    return [Overlaps(pairs.areas[part], pairs.offsets[part], pairs.values) for part in split]


class _Pairs:
    """P pairs of a mask and a cell of its image, by ascending cell.

    Attributes:
        cells: (P,) int64.
        areas: (P,) float64, pixels of the masks.
        offsets, values: the overlaps of pair p are `values[offsets[p]:offsets[p + 1]]`.
    """

    def __init__(self, gt: GroundTruth, cells: np.ndarray, masks: np.ndarray, rles: list[dict], whole_images: bool):
        self._gt, self._masks, self._rles = gt, masks, rles
        self.cells = cells
        self._first, self.offsets = ground_truth_of(gt, cells, whole_images)
        self.areas, self.values = np.empty(len(cells)), np.empty(self.offsets[-1])

    def compute(self, start: int, stop: int) -> None:
        """Computes areas and overlaps of the pairs from `start` to `stop`, which are all those of some images."""
        gt, first, offsets = self._gt, self._first[start:stop], self.offsets[start : stop + 1]
        g_start, g_stop = (int(i) for i in (first.min(), (first + np.diff(offsets)).max()))
        masks, inverse = np.unique(self._masks[start:stop], return_inverse=True)
        images = np.empty(len(masks), np.int64)
        images[inverse] = self.cells[start:stop] // len(gt.category_ids)
        texts = [_object_text(gt, g) for g in range(g_start, g_stop)]
        texts += [_text(self._rles[i]) for i in masks.tolist()]
        gt_images = gt.cells[g_start:g_stop] // len(gt.category_ids)
        runs, areas = _decode(gt, texts, np.concatenate([gt_images, images]))
        crowd = np.zeros(len(texts), bool)
        crowd[: g_stop - g_start] = gt.crowd[g_start:g_stop]
        detected = inverse + (g_stop - g_start)
        mask_overlaps(*runs, areas, detected, first - g_start, offsets, crowd, self.values)
        self.areas[start:stop] = areas[detected]


def _decode(gt: GroundTruth, texts: list[bytes], images: np.ndarray) -> tuple[Any, np.ndarray]:
    """Returns starts, ends and bounds of `decode_runs` for masks of `images` (U,), and the areas (U,) int64."""
    pixels = gt.sizes[images].prod(axis=1)
    codes = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    starts, ends = np.empty((2, len(codes) // 2 + len(texts)), np.int32)
    bounds, sizes = np.empty(len(texts) + 1, np.int64), np.empty((len(texts), 2), np.int64)
    decode_runs(codes, offsets, starts, ends, bounds, sizes)
    faulty = np.flatnonzero(sizes[:, 1] > pixels)
    if len(faulty):
        u = faulty[0]
        image = gt.image_ids[images[u]]
        raise ValueError(f"image {image}: a mask has {sizes[u, 1]} pixels in its run lengths, expected {pixels[u]}")
    return (starts, ends, bounds), sizes[:, 0].copy()


def ground_truth_of(gt: GroundTruth, cells: np.ndarray, whole_images: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first object of each cell (N,) int64, and (N+1,) int64 offsets by the numbers of objects.

    With `whole_images`, the objects of a cell are all those of its image.
    """
    size = len(gt.category_ids) if whole_images else 1
    starts = cells // size * size
    first, last = np.searchsorted(gt.cells, starts), np.searchsorted(gt.cells, starts + size)
    offsets = np.zeros(len(cells) + 1, np.int64)
    np.cumsum(last - first, out=offsets[1:])
    return first, offsets


def _object_text(gt: GroundTruth, g: int) -> bytes:
    """Returns the string of an object's mask."""
    from hotcoco import mask

    segmentation = gt.segmentations[g]
    if isinstance(segmentation, dict):
        return _text(segmentation)
    height, width = gt.sizes[gt.cells[g] // len(gt.category_ids)].tolist()
    rles = mask.fr_py_objects(segmentation, height, width)
    return _text(rles[0] if len(rles) == 1 else mask.merge(rles))


def _text(rle: dict) -> bytes:
    """Returns the string of a run-length encoding, compressed or not."""
    counts = rle["counts"]
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")
    if isinstance(counts, bytes):
        return counts
    from hotcoco import mask

    return _text(mask.merge([rle]))
