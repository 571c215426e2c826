"""How often a detector's own classifier is right on ground-truth boxes: a check of the order of its classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from extract.cache.reader import RoICache

BYTES_AT_ONCE = 1 << 26
"""Of logits in memory."""
LOW_ACCURACY, LOW_VERSUS_CHANCE = 0.05, 0.5
"""Below either, relative to 1 / K for the second, classes are likely to be in another order. With few classes chance
alone is above 5 %."""


class Accuracy(NamedTuple):
    """The share of RoIs whose foreground class of the highest logit is their label.

    Attributes:
        correct: number of RoIs that are classified correctly.
        total: number of RoIs.
        boxes: what they are, "ground-truth boxes" or "RoIs that match one", where a cache has no ground-truth boxes.
    """

    correct: int
    total: int
    boxes: str


def own_accuracy(cache: RoICache) -> Accuracy:
    """Returns the accuracy of the detector's own classifier in the last stage; background is no answer."""
    labels, is_gt = cache.read("labels")[:, -1], cache.read("is_gt").astype(bool)
    labelled = (labels >= 0) & (labels < cache.num_classes)
    rows = np.flatnonzero(labelled & is_gt if is_gt.any() else labelled)
    correct, count = 0, max(BYTES_AT_ONCE // (4 * len(cache.stages) * (cache.num_classes + 1)), 1)
    for begin in range(0, len(rows), count):
        part = rows[begin : begin + count]
        correct += int((cache.take("logits", part)[:, -1, :-1].argmax(1) == labels[part]).sum())
    return Accuracy(correct, len(rows), "ground-truth boxes" if is_gt.any() else "RoIs that match a ground-truth box")


def describe_accuracy(cache: RoICache) -> str:
    """Returns `own_accuracy` as a line, with what near zero means."""
    correct, total, boxes = own_accuracy(cache)
    if not total:
        return f"the detector's own classifier: no {boxes} to classify"
    share = correct / total
    text = f"the detector's own classifier is right on {share:.1%} of {total:,} {boxes}"
    if share < max(LOW_ACCURACY, LOW_VERSUS_CHANCE / cache.num_classes):
        text += ": so few that its classes are likely to be in another order than the class table; see --class-order"
    return text
