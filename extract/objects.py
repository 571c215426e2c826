"""Which RoIs of a cache stand for its objects."""

from __future__ import annotations

import numpy as np

from extract.cache.reader import RoICache


def object_rois(cache: RoICache, labels: np.ndarray, stage: int) -> np.ndarray:
    """Returns the RoI of highest IoU with each annotated object that any RoI matches: (n,) int64 packed rows.

    A train cache has the ground-truth boxes themselves, a val cache the best proposals. `labels` (R,) are those of the
    stage.
    """
    ious, gt_ids = (cache.read(name)[:, stage] for name in ("ious", "gt_ids"))
    owners = np.repeat(np.arange(len(cache)), np.diff(cache.offsets))
    rows = np.flatnonzero((labels >= 0) & (labels < cache.num_classes))
    rows = rows[np.lexsort((-ious[rows], labels[rows], gt_ids[rows], owners[rows]))]
    objects = np.stack([owners[rows], gt_ids[rows], labels[rows]])
    return rows[np.any(np.diff(objects, axis=1, prepend=objects[:, :1] - 1) != 0, axis=0)]
