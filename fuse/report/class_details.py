"""What a click on a class shows: its counts, its AP and its best detections, before and after."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from fuse.evaluation.native import order_by_class
from fuse.report.inputs import ReportInputs
from fuse.report.thumbnails import Best, Thumbnails

MAX_DETECTIONS = 5
"""Detections listed of each class and row, the best ones."""
MAX_LISTED = 8000
"""Detections listed of each row: of more classes, each has fewer, but one at least."""


def best_of_classes(inputs: ReportInputs) -> dict[str, list[list[int]]]:
    """Returns, by row, the best detections of each class, best first."""
    limit = min(MAX_DETECTIONS, max(1, MAX_LISTED // len(inputs.classes)))
    best = {}
    for row in inputs.rows:
        outcomes = inputs.outcomes[row]
        order, starts = order_by_class(outcomes.found_labels, outcomes.detections.scores, len(inputs.classes))
        best[row] = [order[first : min(last, first + limit)].tolist() for first, last in pairwise(starts.tolist())]
    return best


def class_details(inputs: ReportInputs, best: Best, thumbnails: Thumbnails) -> dict[str, Any]:
    """Returns what the page shows of all classes, in lists that have an entry per class: a name would cost its bytes
    13,000 times.

    `names` and `counts`, training instances; by IoU type and row `ap`; by row `found`, the best detections: image id,
    score, what is there, and the position of its thumbnail or None.

    Args:
        inputs: of the report.
        best: of `best_of_classes`.
        thumbnails: of these detections.
    """
    return {
        "names": inputs.classes["name"].tolist(),
        "counts": inputs.classes["instance_count"].tolist(),
        "ap": {
            iou_type: [_rounded(inputs.tables(iou_type)[row]["AP"].to_numpy()) for row in inputs.rows]
            for iou_type in inputs.summary.index.unique("iou_type")
        },
        "found": [
            [
                [(*_describe(inputs, row, label, i), thumbnails.positions[row].get(i)) for i in found]
                for label, found in enumerate(best[row])
            ]
            for row in inputs.rows
        ],
    }


def _rounded(aps: np.ndarray) -> list[float | None]:
    """Returns AP (K,) with one decimal; None for classes that are not evaluated."""
    return [None if np.isnan(ap) else round(float(ap), 1) for ap in aps]


def _describe(inputs: ReportInputs, row: str, label: int, detection: int) -> tuple[Any, float, str | int]:
    """Returns image id and score of a detection of a class, and what is there: words, or the label of another class."""
    outcomes = inputs.outcomes[row]
    owner = outcomes.objects[detection]
    there: str | int
    if owner < 0:
        there = "no annotated object"
    elif outcomes.labels[owner] != label:
        there = int(outcomes.labels[owner])
    else:
        there = "right" if outcomes.best_own[owner] == detection else "a second time"
    image_id = inputs.dataset.shown_id(int(outcomes.detections.image_ids[detection]))
    return image_id, round(float(outcomes.detections.scores[detection]), 3), there
