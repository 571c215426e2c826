"""Numba kernel of TIDE's error types (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors",
ECCV 2020, section 2.2).

Letters in shapes: `N` detections, `G` objects of ground truth.
"""

from __future__ import annotations

import numpy as np

from fuse.ops.kernel_cache import cached_njit
from fuse.ops.matching_kernels import FALSE_POSITIVE, TRUE_POSITIVE

CLS, LOC, BOTH, DUPE, BKG, NO_ERROR = 0, 1, 2, 3, 4, 5
"""Type of a false positive: wrong class; right class, badly placed; both; a second detection of an object; background.
"""
FOREGROUND, BACKGROUND = 0.5, 0.1
"""A detection is on an object from the first overlap on, and on background up to the second."""


@cached_njit
def error_types(
    classes: np.ndarray,
    gt_classes: np.ndarray,
    gt_ignored: np.ndarray,
    first: np.ndarray,
    offsets: np.ndarray,
    overlaps: np.ndarray,
    outcomes: np.ndarray,
    types: np.ndarray,
    targets: np.ndarray,
    taken: np.ndarray,
) -> None:
    """Finds the type of each false positive, and the object that each detection is on or would be on, corrected.

    Args:
        classes: (N,) int64, of the detections; those of an image and class follow each other, best first.
        gt_classes: (G,) int64.
        gt_ignored: (G,) bool, objects that do not count.
        first: (N,) int64, the first object of each detection's image.
        offsets: (N+1,) int64; the overlaps of detection n with the objects of its image start at offsets[n].
        overlaps: float64, IoU.
        outcomes: (N,) uint8 of `match` at IoU 0.5.
        types: (N,) uint8, overwritten; `NO_ERROR` for what is no false positive.
        targets: (N,) int64, overwritten: the object of a true positive, or of a false positive of type Cls or Loc, else
            -1.
        taken: zeros (G,) bool; set for objects of true positives.
    """
    for n in range(classes.size):
        same, same_at, other, other_at, best, best_at = 0.0, -1, 0.0, -1, FOREGROUND, -1
        for g in range(first[n], first[n] + offsets[n + 1] - offsets[n]):
            if gt_ignored[g]:
                continue
            overlap = overlaps[offsets[n] + g - first[n]]
            if gt_classes[g] != classes[n]:
                if overlap > other:
                    other, other_at = overlap, g
                continue
            if overlap > same:
                same, same_at = overlap, g
            if not taken[g] and overlap >= best:  # as `match`: of equal overlaps the last one
                best, best_at = overlap, g
        types[n], targets[n] = NO_ERROR, -1
        if outcomes[n] == TRUE_POSITIVE and best_at >= 0:
            targets[n], taken[best_at] = best_at, True
        elif outcomes[n] == FALSE_POSITIVE:
            if BACKGROUND <= same < FOREGROUND:
                types[n], targets[n] = LOC, same_at
            elif other >= FOREGROUND:
                types[n], targets[n] = CLS, other_at
            elif same >= FOREGROUND:
                types[n] = DUPE
            elif other <= BACKGROUND:
                types[n] = BKG
            else:
                types[n] = BOTH
