"""Precision and recall of matched detections."""

from __future__ import annotations

import numpy as np

from fuse.evaluation.engines import PrecisionRecall
from fuse.evaluation.native import IOU_THRESHOLDS, Matches, ranks_in_cells
from fuse.ops.matching_kernels import precision_curves

RECALL_THRESHOLDS = np.linspace(0, 1, 101)


def curves(matches: Matches) -> PrecisionRecall:
    """Returns precision and recall of a row."""
    gt, caps = matches.gt, matches.caps
    order, starts = matches.by_class()
    num_classes, num_matched = len(gt.category_ids), len(order)
    counts = np.stack([np.bincount(gt.classes[~ignored], minlength=num_classes) for ignored in matches.gt_ignored])
    absent = np.where(counts.T > 0, 0.0, -1.0)
    shape = len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), *absent.shape
    precision = np.broadcast_to(absent, shape).copy()
    recall = np.repeat(np.broadcast_to(absent, (shape[0], *absent.shape))[..., None], len(caps), axis=3)
    points, limits = np.empty((2, num_matched)), np.array([cap or num_matched for cap in caps], np.int64)
    ranks = ranks_in_cells(matches.cells)
    precision_curves(
        starts, order, matches.outcomes, counts, RECALL_THRESHOLDS, ranks, limits, points, precision, recall
    )
    return PrecisionRecall(precision, recall, caps)
