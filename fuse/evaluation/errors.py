"""Where the errors are: TIDE's error types, calibration of scores, and which classes objects are taken for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping

import hotcoco
import numpy as np
import pandas as pd

from extract.data.bins import BINS, bin_index, bin_names
from fuse.detections import Detections
from fuse.evaluation.checks import check_detections, with_categories
from fuse.evaluation.coco_engines import hotcoco_coco_evaluation, recall_caps
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.engines import hotcoco_inputs, hotcoco_lvis_evaluation
from fuse.evaluation.protocols import match_rows, resolve_cap, resolve_iou_types, resolve_protocol

_LOG = logging.getLogger(__name__)
TIDE_TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
"""Wrong class; right class, badly placed; both; a second detection of an object; background; an object not found."""


def error_table(
    annotations: str | os.PathLike | dict,
    rows: Mapping[str, Detections],
    classes: pd.DataFrame,
    *,
    bins: tuple[float, ...] = BINS,
    iou_type: str | Iterable[str] | None = None,
    protocol: str | None = None,
    max_detections: int | None = None,
    image_ids: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Says of each row of detections where its errors are, at an IoU of 0.5.

    Columns:
        Cls, Loc, Both, Dupe, Bkg, Miss: points of AP50 that would be gained without this type of error (TIDE, Bolya et
            al. 2020), as hotcoco computes them. In federated datasets a class counts where it is annotated.
        ECE of each bin and of all classes: expected calibration error in points, the mean difference between score and
            precision over ten bins of scores, weighted by detections (D-ECE, Küppers et al. 2020).
        confused, up and missed of each bin: of its objects, the share in percent whose detection is of another class;
            of a class in a bin of more training instances; and that no detection finds. Detections of all classes are
            matched with objects, best score first, as hotcoco's confusion matrix does.

    Args:
        annotations, classes, bins, protocol, max_detections, image_ids: as of `evaluate`.
        rows: detections by name.
        iou_type: "segm", "bbox" or both; by default both if all rows and the annotations have masks, else "bbox".

    Returns:
        A table indexed by (iou_type, row); NaN where a bin has no detections or objects, and for ECE of scores above 1.

    Raises ValueError as `evaluate` does.
    """
    dataset = with_categories(load_annotations(annotations, image_ids), classes)
    protocol = resolve_protocol(dataset, protocol)
    cap = resolve_cap(protocol, max_detections)
    index = bin_index(classes.sort_values("category_id")["instance_count"].to_numpy(), bins)
    table = {}
    for one_type in resolve_iou_types(iou_type, dataset, rows.values()):
        for name, detections in rows.items():
            check_detections(dataset, detections, one_type)
            capped = detections.top_per_image(cap) if protocol == "federated" else detections
            table[one_type, name] = (
                _tide(dataset, capped, one_type, protocol, cap)
                | _calibration(dataset, capped, one_type, protocol, cap, index, bins)
                | _confusion(_confusion_matrix(dataset, capped, one_type, cap), index, bins)
            )
    return pd.DataFrame(table).T.rename_axis(["iou_type", "row"])


def confusions(
    annotations: str | os.PathLike | dict,
    detections: Detections,
    classes: pd.DataFrame,
    *,
    iou_type: str = "bbox",
    max_detections: int | None = None,
    image_ids: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Lists which other classes the objects of each class are taken for, most objects first.

    Arguments and matching are those of `error_table`. Columns: name, instance_count, taken_for,
    taken_for_instance_count, objects (that are taken for it) and share (of the class's objects, in percent).
    """
    dataset = with_categories(load_annotations(annotations, image_ids), classes)
    check_detections(dataset, detections, iou_type)
    matrix = _confusion_matrix(dataset, detections, iou_type, resolve_cap(dataset.protocol, max_detections))
    table, counts = classes.sort_values("category_id"), matrix[:-1, :-1].copy()
    np.fill_diagonal(counts, 0)
    objects, predicted = np.nonzero(counts)
    found = pd.DataFrame(
        {
            "name": table["name"].to_numpy()[objects],
            "instance_count": table["instance_count"].to_numpy()[objects],
            "taken_for": table["name"].to_numpy()[predicted],
            "taken_for_instance_count": table["instance_count"].to_numpy()[predicted],
            "objects": counts[objects, predicted].astype(np.int64),
            "share": 100 * counts[objects, predicted] / matrix[objects].sum(axis=1),
        }
    )
    return found.sort_values("objects", ascending=False, kind="stable", ignore_index=True)


def _tide(
    dataset: EvaluationDataset, detections: Detections, iou_type: str, protocol: str, cap: int
) -> dict[str, float]:
    """Returns the points of AP50 of each error type."""
    if protocol == "exhaustive":
        evaluation = hotcoco_coco_evaluation(dataset, detections, iou_type, recall_caps(cap))
    else:
        evaluation = hotcoco_lvis_evaluation(dataset, detections, iou_type)
    gained = evaluation.tide_errors()["delta_ap"]
    return {name: 100 * gained[name] for name in TIDE_TYPES}


def _calibration(
    dataset: EvaluationDataset,
    detections: Detections,
    iou_type: str,
    protocol: str,
    cap: int,
    index: np.ndarray,
    bins: tuple[float, ...],
) -> dict[str, float]:
    """Returns the calibration error of each bin of classes, `index` (K,), and of all."""
    from fuse.ops.matching_kernels import IGNORED, TRUE_POSITIVE

    (matches,) = match_rows(protocol, dataset, [detections], iou_type, cap, lambda found: found)
    outcomes, of_bin = matches.outcomes[0, 0], index[matches.cells % len(index)]
    scores, counted = matches.scores.astype(np.float64), outcomes != IGNORED
    names = [f"ECE{name}" for name in bin_names(bins)]
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        _LOG.warning("scores reach from %g to %g, so they have no calibration error", scores.min(), scores.max())
        return dict.fromkeys([*names, "ECE"], np.nan)
    groups = {name: counted & (of_bin == i) for i, name in enumerate(names)} | {"ECE": counted}
    return {name: _calibration_error(scores[of], outcomes[of] == TRUE_POSITIVE) for name, of in groups.items()}


def _calibration_error(scores: np.ndarray, correct: np.ndarray) -> float:
    """Returns the expected calibration error in points; NaN without detections."""
    return 100 * hotcoco.metrics.calibration_error(scores, correct)[0] if len(scores) else np.nan


def _confusion_matrix(dataset: EvaluationDataset, detections: Detections, iou_type: str, cap: int) -> np.ndarray:
    """Returns hotcoco's (K+1, K+1) matrix: rows objects, columns detections, background last."""
    gt, results = hotcoco_inputs(dataset, detections, iou_type)
    return hotcoco.COCOeval(gt, results, iou_type).confusion_matrix(max_det=cap)["matrix"]


def _confusion(matrix: np.ndarray, index: np.ndarray, bins: tuple[float, ...]) -> dict[str, float]:
    """Returns the shares of each bin's objects in percent, given the bin of each class (K,)."""
    names = bin_names(bins)
    by_bin = np.zeros((len(names), len(names)))
    known = index >= 0
    np.add.at(
        by_bin, tuple(np.broadcast_arrays(index[known][:, None], index[known])), matrix[:-1, :-1][known][:, known]
    )
    rows = [matrix[:-1][index == i] for i in range(len(names))]
    right = [np.diag(matrix)[:-1][index == i].sum() for i in range(len(names))]
    shares: dict[str, float] = {}
    for i, name in enumerate(names):
        total = rows[i].sum()
        parts = {
            "confused": rows[i][:, :-1].sum() - right[i],
            "up": by_bin[i, i + 1 :].sum(),
            "missed": rows[i][:, -1].sum(),
        }
        shares |= {f"{kind}{name}": 100 * part / total if total else np.nan for kind, part in parts.items()}
    return shares
