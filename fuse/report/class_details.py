"""What a click on a class shows: its counts, its AP and its best detections, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fuse.evaluation.native import order_by_class
from fuse.report.inputs import ReportInputs
from fuse.report.thumbnails import Thumbnails

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


def class_details(
    inputs: ReportInputs, best: Mapping[str, Sequence[Sequence[int]]], thumbnails: Thumbnails
) -> list[dict[str, Any]]:
    """Returns, for each class, name, training instances, AP by IoU type, and the best detections, before and after.

    Args:
        inputs: of the report.
        best: of `best_of_classes`.
        thumbnails: of these detections. The last entry of a detection is the position of its thumbnail, or None.
    """
    details: list[dict[str, Any]] = [
        {"name": name, "count": int(count), "ap": {}, "found": []}
        for name, count in zip(inputs.classes["name"], inputs.classes["instance_count"], strict=True)
    ]
    for iou_type in inputs.summary.index.unique("iou_type"):
        aps = [inputs.tables(iou_type)[row]["AP"].tolist() for row in inputs.rows]
        for detail, *values in zip(details, *aps, strict=True):
            detail["ap"][iou_type] = [None if np.isnan(value) else round(value, 1) for value in values]
    for row in inputs.rows:
        positions = thumbnails.positions[row]
        for label, (detail, found) in enumerate(zip(details, best[row], strict=True)):
            detail["found"].append([(*_describe(inputs, row, label, i), positions.get(i)) for i in found])
    return details


def _describe(inputs: ReportInputs, row: str, label: int, detection: int) -> tuple[Any, float, str]:
    """Returns image id and score of a detection of a class, and what is there."""
    outcomes = inputs.outcomes[row]
    owner = outcomes.objects[detection]
    if owner < 0:
        there = "no annotated object"
    elif outcomes.labels[owner] != label:
        there = f"is {inputs.classes['name'].iloc[outcomes.labels[owner]]}"
    else:
        there = "right" if outcomes.best_own[owner] == detection else "a second time"
    image_id = inputs.dataset.shown_id(int(outcomes.detections.image_ids[detection]))
    return image_id, round(float(outcomes.detections.scores[detection]), 3), there
