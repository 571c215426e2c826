"""Where the errors of a row are, from matches that are made once: TIDE's error types, calibration, confusion."""

from __future__ import annotations

import logging
from typing import NamedTuple

import hotcoco
import numpy as np
import pandas as pd

from extract.data.bins import bin_index, bin_names
from fuse.evaluation.accumulate import RECALL_THRESHOLDS
from fuse.evaluation.native import Matches, order_by_class
from fuse.evaluation.outcomes import Outcomes, object_outcomes
from fuse.evaluation.overlaps import ground_truth_of, overlaps_of_boxes, overlaps_of_masks
from fuse.ops.error_kernels import CLS, LOC, error_types
from fuse.ops.matching_kernels import IGNORED, TRUE_POSITIVE, precision_curves

_LOG = logging.getLogger(__name__)
TIDE_TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
"""Wrong class; right class, badly placed; both; a second detection of an object; background; an object not found."""
SCORE_BINS = 25
"""Bins of scores of LaECE."""


def row_errors(matches: Matches, classes: pd.DataFrame, bins: tuple[float, ...], iou_type: str) -> dict[str, float]:
    """Returns the columns of `error_table` of a row.

    Args:
        matches: of the row.
        classes: the class table.
        bins: edges of half-open bins of training instances.
        iou_type: "segm" or "bbox".
    """
    counts = classes.sort_values("category_id")["instance_count"].to_numpy()
    names, index = bin_names(bins), bin_index(counts, bins)
    found = _error_types(matches, iou_type)
    gained = _gained(matches, found)
    table = {name: _mean(gained[:, i]) for i, name in enumerate(TIDE_TYPES)}
    for i, kind in enumerate(TIDE_TYPES):
        table |= {f"{kind}{name}": _mean(gained[index == b, i]) for b, name in enumerate(names)}
    table |= _calibration(matches, found.ious, index, names)
    outcomes = object_outcomes(matches.gt.dataset, matches.candidates.detections, classes)
    return table | _confusion(outcomes, bin_index(classes["instance_count"].to_numpy(), bins), names)


class ErrorTypes(NamedTuple):
    """The errors of N detections on G objects.

    Attributes:
        types: (N,) uint8, of `fuse.ops.error_kernels`.
        targets: (N,) int64, objects of true positives, and those that Cls and Loc errors would be on; else -1.
        taken: (G,) bool, objects of true positives.
        ious: (N,) float64, of true positives with their objects; else 0.
    """

    types: np.ndarray
    targets: np.ndarray
    taken: np.ndarray
    ious: np.ndarray


def _error_types(matches: Matches, iou_type: str) -> ErrorTypes:
    """Returns the errors at IoU 0.5, from the overlaps of each detection with all objects of its image."""
    gt, candidates = matches.gt, matches.candidates
    if iou_type == "segm":
        (overlaps,) = overlaps_of_masks(gt, [candidates], whole_images=True)
    else:
        overlaps = overlaps_of_boxes(gt, candidates, whole_images=True)
    first, offsets = ground_truth_of(gt, matches.cells, whole_images=True)
    places = np.repeat(overlaps.places - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    values = overlaps.values[places]  # those of detection n now begin at offsets[n]
    size, outcomes = len(matches.cells), matches.outcomes[0, 0]
    types, targets, taken = np.empty(size, np.uint8), np.empty(size, np.int64), np.zeros(len(gt.cells), bool)
    classes = matches.cells % len(gt.category_ids)
    error_types(classes, gt.classes, matches.gt_ignored[0], first, offsets, values, outcomes, types, targets, taken)
    ious, right = np.zeros(size), np.flatnonzero((outcomes == TRUE_POSITIVE) & (targets >= 0))
    ious[right] = values[offsets[right] + targets[right] - first[right]]
    return ErrorTypes(types, targets, taken, ious)


def _gained(matches: Matches, found: ErrorTypes) -> np.ndarray:
    """Returns (K, 6) float64: by how many points of AP50 each class gains without each of `TIDE_TYPES`.

    As in TIDE (section 2.3): of the false positives of type Cls, or Loc, that are on an object which no detection
    matches, the best one becomes a true positive, of the object's class, and all others are dropped; those of other
    types are dropped. Missed objects, which no false positive of type Cls or Loc is on, do not count. A class of which
    all are missed then gains all it can, 100 points less its AP50. NaN for classes without objects.
    """
    num_classes, given = len(matches.gt.category_ids), matches.outcomes[0, 0]
    best = {kind: _best_on_free_objects(matches, found, kind) for kind in (CLS, LOC)}
    moved = best[CLS]
    outcomes = np.full((1 + len(TIDE_TYPES), 1, len(given) + len(moved)), IGNORED, np.uint8)
    outcomes[:, 0, : len(given)] = given
    for kind in range(len(TIDE_TYPES) - 1):
        outcomes[1 + kind, 0, : len(given)][found.types == kind] = IGNORED
    outcomes[1 + CLS, 0, len(given) :] = TRUE_POSITIVE
    outcomes[1 + LOC, 0, best[LOC]] = TRUE_POSITIVE
    counted = ~matches.gt_ignored[0]
    missed = counted & ~found.taken
    missed[found.targets[found.targets >= 0]] = False
    objects, lost = (np.bincount(matches.gt.classes[of], minlength=num_classes) for of in (counted, missed))
    counts = np.tile(objects, (len(outcomes), 1))
    counts[-1] -= lost
    classes = np.concatenate([matches.cells % num_classes, matches.gt.classes[found.targets[moved]]])
    scores = np.concatenate([matches.scores, matches.scores[moved]])
    ap = _ap50(classes, scores, outcomes, counts)
    ap[:, -1][(objects > 0) & (counts[-1] == 0)] = 100
    ap[objects == 0] = np.nan
    return ap[:, 1:] - ap[:, :1]


def _best_on_free_objects(matches: Matches, found: ErrorTypes, kind: int) -> np.ndarray:
    """Returns the best false positive of a type on each object that no detection matches, as positions."""
    positions = np.flatnonzero(found.types == kind)
    positions = positions[~found.taken[found.targets[positions]]]
    order = positions[np.argsort(-matches.scores[positions], kind="stable")]
    return order[np.unique(found.targets[order], return_index=True)[1]]


def _ap50(classes: np.ndarray, scores: np.ndarray, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns AP50 (K, V) in points of V variants of D detections; 0 for classes without objects.

    Args:
        classes: (D,) int64.
        scores: (D,) float32.
        outcomes: (V, 1, D) uint8.
        counts: (V, K) int64, objects that count.
    """
    variants, num_classes = counts.shape
    order, starts = order_by_class(classes, scores, num_classes)
    precision = np.zeros((1, len(RECALL_THRESHOLDS), num_classes, variants))
    recall, points = np.zeros((1, num_classes, variants, 1)), np.empty((2, len(order)))
    ranks, caps = np.zeros(len(order), np.int64), np.ones(1, np.int64)
    precision_curves(starts, order, outcomes, counts, RECALL_THRESHOLDS, ranks, caps, points, precision, recall)
    return 100 * precision[0].mean(axis=0)


def _calibration(matches: Matches, ious: np.ndarray, index: np.ndarray, names: list[str]) -> dict[str, float]:
    """Returns ECE and LaECE of each bin of classes, `index` (K,), and of all."""
    classes = matches.cells % len(index)
    scores, outcomes = matches.scores.astype(np.float64), matches.outcomes[0, 0]
    counted, correct = outcomes != IGNORED, outcomes == TRUE_POSITIVE
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        _LOG.warning("scores reach from %g to %g, so they have no calibration error", scores.min(), scores.max())
        return {f"{kind}{name}": np.nan for kind in ("ECE", "LaECE") for name in (*names, "")}
    groups = {name: counted & (index[classes] == i) for i, name in enumerate(names)} | {"": counted}
    ece = {f"ECE{name}": _calibration_error(scores[of], correct[of]) for name, of in groups.items()}
    laece = _localisation_aware_error(classes[counted], scores[counted], ious[counted], len(index))
    return ece | {f"LaECE{name}": _mean(laece[index == i]) for i, name in enumerate(names)} | {"LaECE": _mean(laece)}


def _calibration_error(scores: np.ndarray, correct: np.ndarray) -> float:
    """Returns the expected calibration error in points; NaN without detections."""
    return 100 * hotcoco.metrics.calibration_error(scores, correct)[0] if len(scores) else np.nan


def _localisation_aware_error(
    classes: np.ndarray, scores: np.ndarray, ious: np.ndarray, num_classes: int
) -> np.ndarray:
    """Returns the LaECE (K,) of each class in points; NaN without detections.

    Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty Quantification and
    Calibration" (CVPR 2023): in 25 bins of scores, the difference between the mean score and precision times the mean
    IoU of true positives, weighted by detections. Precision times this mean is the sum of their IoU, `ious` (N,) with 0
    for false positives, over the number of detections. True positives have an IoU of 0.5, in the authors' code of 0.1.
    """
    cells = classes * SCORE_BINS + np.clip(np.ceil(scores * SCORE_BINS).astype(np.int64) - 1, 0, SCORE_BINS - 1)
    difference = np.abs(np.bincount(cells, scores - ious, num_classes * SCORE_BINS)).reshape(num_classes, SCORE_BINS)
    detections = np.bincount(classes, minlength=num_classes)
    return 100 * np.divide(difference.sum(axis=1), detections, out=np.full(num_classes, np.nan), where=detections > 0)


def _confusion(found: Outcomes, index: np.ndarray, names: list[str]) -> dict[str, float]:
    """Returns the shares of each bin's objects in percent, given the bin (K,) of each row of the class table."""
    own, taken = index[found.labels], found.taken_for
    is_missed, is_confused = taken < 0, (taken >= 0) & ~found.named
    is_up = is_confused & (index[taken] > own)
    shares: dict[str, float] = {}
    for i, name in enumerate(names):
        of_bin = own == i
        parts = {"confused": is_confused, "up": is_up, "missed": is_missed}
        shares |= {
            f"{kind}{name}": 100 * float(part[of_bin].mean()) if of_bin.any() else np.nan
            for kind, part in parts.items()
        }
    return shares


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are numbers; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
