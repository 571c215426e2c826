"""Where the errors are: TIDE's error types, calibration of scores, and which classes objects are taken for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from extract.data.bins import BINS
from fuse.detections import Detections
from fuse.evaluation.checks import check_detections, with_categories
from fuse.evaluation.compare import compare_rows
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.outcomes import object_outcomes
from fuse.evaluation.protocols import capped, resolve_cap, resolve_iou_types, resolve_protocol


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
    progress: bool = True,
) -> pd.DataFrame:
    """Says of each row of detections where its errors are, at an IoU of 0.5.

    Columns, each of all classes and of each bin of classes:
        Cls, Loc, Both, Dupe, Bkg, Miss: points of AP50 that would be gained without this type of error (TIDE, Bolya et
            al. 2020): wrong class; right class, badly placed; both; a second detection of an object; background; an
            object that is not found. In federated datasets a class counts where it is annotated.
        ECE: expected calibration error in points, the mean difference between score and precision over ten bins of
            scores, weighted by detections (D-ECE, Küppers et al. 2020).
        LaECE: the same between score and precision times IoU, over 25 bins of scores, the mean of the classes
            (localisation-aware, Oksuz et al. 2023).
        confused, up and missed, of bins only: of the bin's objects, the share in percent that is taken for another
            class; for a class in a bin of more training instances; and that no detection is on. The best detection on
            an object decides, by boxes whatever the IoU type, see `fuse.evaluation.outcomes.Outcomes`.

    Args:
        annotations, classes, bins, protocol, max_detections, image_ids, progress: as of `evaluate`.
        rows: detections by name.
        iou_type: "segm", "bbox" or both; by default both if all rows and the annotations have masks, else "bbox".

    Returns:
        A table indexed by (iou_type, row); NaN where a bin has no detections or objects, and for ECE of scores above 1.

    Raises ValueError as `evaluate` does.
    """
    dataset = load_annotations(annotations, image_ids)
    found = compare_rows(
        dataset,
        rows,
        classes,
        iou_types=resolve_iou_types(iou_type, dataset, rows.values()),
        bins=bins,
        protocol=resolve_protocol(dataset, protocol),
        samples=0,
        errors=True,
        progress=progress,
        max_detections=max_detections,
    )
    assert found.errors is not None, "they were asked for"
    return found.errors


def confusions(
    annotations: str | os.PathLike | dict,
    detections: Detections,
    classes: pd.DataFrame,
    *,
    protocol: str | None = None,
    max_detections: int | None = None,
    image_ids: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Lists which other classes the objects of each class are taken for, most objects first.

    An object is taken for the class of the best detection on it, as in `error_table`, whose arguments these are.
    Columns: name, instance_count, taken_for, taken_for_instance_count, objects (that are taken for it) and share (of
    the class's objects, in percent).
    """
    dataset = with_categories(load_annotations(annotations, image_ids), classes)
    check_detections(dataset, detections, "bbox")
    protocol = resolve_protocol(dataset, protocol)
    (detections,) = capped(protocol, [detections], resolve_cap(protocol, max_detections))
    found = object_outcomes(dataset, detections, classes, progress=True)
    confused = (found.taken_for >= 0) & ~found.named
    pairs, counts = np.unique(np.stack([found.labels, found.taken_for], 1)[confused], axis=0, return_counts=True)
    objects, predicted = pairs.reshape(-1, 2).T
    table = pd.DataFrame(
        {
            "name": classes["name"].to_numpy()[objects],
            "instance_count": classes["instance_count"].to_numpy()[objects],
            "taken_for": classes["name"].to_numpy()[predicted],
            "taken_for_instance_count": classes["instance_count"].to_numpy()[predicted],
            "objects": counts.astype(np.int64),
            "share": 100 * counts / np.bincount(found.labels, minlength=len(classes))[objects],
        }
    )
    return table.sort_values("objects", ascending=False, kind="stable", ignore_index=True)
