"""Average precision by class, by bin of training instances and over the data set, with the LVIS protocol.

Two engines compute precision and recall: hotcoco, and the official `lvis` package as referee (slow). Both are given
the same annotations and the same detections; all else, from the cap to the means, is done here once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from tqdm import tqdm

from extract.data.bins import BINS, bin_index, bin_names
from fuse.detections import Detections
from fuse.evaluation.engines import ENGINES
from fuse.evaluation.lvis import Loaded, check_categories, load_annotations

IOU_TYPES = ("segm", "bbox")
FIXED_PER_CLASS = 10_000
"""Detections of each class that fixed AP looks at (Dave et al. 2021)."""


def evaluate(
    annotations: str | os.PathLike | dict,
    detections: Detections,
    classes: pd.DataFrame,
    *,
    bins: tuple[float, ...] = BINS,
    iou_type: str | Iterable[str] | None = None,
    fixed_ap: bool = False,
    max_detections: int = 300,
    engine: str = "hotcoco",
    image_ids: Iterable[int] | None = None,
) -> pd.DataFrame:
    """LVIS average precision in points of 0 to 100.

    Args:
        annotations: an LVIS annotation file, or its content (which stays as it is).
        detections: of any of its images.
        classes: the class table: category_id, name, frequency and the **training** instance_count, which decides
            the bin. The annotation file's own counts are not looked at.
        bins: edges of half-open bins of training instances.
        iou_type: "segm", "bbox" or both; None for what the detections have.
        fixed_ap: fixed AP: the best 10,000 detections of each class over the data set, no cap per image.
        max_detections: cap per image, best first, where not `fixed_ap`.
        engine: "hotcoco" or "lvis".
        image_ids: evaluate these images only; None for all images of the file.

    Returns:
        One row per IoU type. Columns: AP of each bin, AP (mean over all classes that have ground truth), bAP (mean
        of the bins), APr, APc, APf by the tag `frequency`, AP50, AP75, AR. NaN where no class has ground truth.
        `.attrs["evaluated"]` has the number of classes with ground truth in each bin and in all.

    Raises:
        ValueError: annotations that are not LVIS's, categories that differ from `classes`, detections of images or
            categories that are not there or with masks of another size, "segm" for detections without masks.
    """
    if iou_type is None:
        iou_type = IOU_TYPES if detections.rles is not None else "bbox"
    types = [iou_type] if isinstance(iou_type, str) else list(iou_type)
    dataset = load_annotations(annotations, image_ids)
    options = {"fixed_ap": fixed_ap, "max_detections": max_detections, "engine": engine}
    tables = {t: per_class_ap(dataset, detections, classes, iou_type=t, **options) for t in types}
    frame = pd.DataFrame({t: summarize(table, bins) for t, table in tables.items()}).T
    frame.index.name = "iou_type"
    frame.attrs["evaluated"] = evaluated_classes(tables[types[0]], bins)
    return frame


def evaluate_rows(
    annotations: Loaded,
    detections: Mapping[str, Detections],
    classes: pd.DataFrame,
    *,
    iou_types: Iterable[str] = ("segm",),
    bins: tuple[float, ...] = BINS,
    progress: bool = False,
    **options,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluates the detections of several rows.

    Args:
        annotations, classes, bins, options: as of `evaluate`; the annotations as `load_annotations` returns them.
        detections: of each row, by name.
        iou_types: "segm", "bbox" or both.
        progress: show a bar on stderr.

    Returns:
        The columns of `evaluate` indexed by (iou_type, row); and the per-class tables below one another,
        indexed by (iou_type, row, class).
    """
    jobs = [(iou_type, name) for iou_type in iou_types for name in detections]
    tables = {}
    for iou_type, name in tqdm(jobs, desc="evaluate", unit="row", disable=None if progress else True):
        tables[iou_type, name] = per_class_ap(annotations, detections[name], classes, iou_type=iou_type, **options)
    summary = pd.DataFrame({key: summarize(table, bins) for key, table in tables.items()}).T
    summary.index.names = ["iou_type", "row"]
    return summary, pd.concat(tables, names=["iou_type", "row", "class"])


def per_class_ap(
    annotations: str | os.PathLike | dict,
    detections: Detections,
    classes: pd.DataFrame,
    *,
    iou_type: str = "segm",
    fixed_ap: bool = False,
    max_detections: int = 300,
    engine: str = "hotcoco",
    image_ids: Iterable[int] | None = None,
) -> pd.DataFrame:
    """The class table with columns AP, AP50, AP75 and AR in points, NaN for classes without ground truth.

    Arguments and errors are those of `evaluate`, which takes its means over this table.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type is {iou_type!r}, expected {' or '.join(map(repr, IOU_TYPES))}")
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected {' or '.join(map(repr, ENGINES))}")
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}, expected at least 1")
    dataset = load_annotations(annotations, image_ids)
    category_ids = classes["category_id"].to_numpy(np.int64)
    check_categories(dataset, category_ids)
    check_detections(dataset, detections, iou_type)
    kept = detections.top_per_class(FIXED_PER_CLASS) if fixed_ap else detections.top_per_image(max_detections)
    precision, recall = ENGINES[engine](dataset, kept, iou_type)  # (T, 101, K), (T, K), K by ascending category id
    order = np.argsort(np.argsort(category_ids))
    table = classes[["category_id", "name", "frequency", "instance_count"]].copy()
    measures = {"AP": precision, "AP50": precision[:1], "AP75": precision[5:6], "AR": recall[:, None]}
    for name, values in measures.items():
        mean = values.mean(axis=(0, 1))[order]
        table[name] = np.where(recall[0][order] >= 0, 100 * mean, np.nan)
    return table


def summarize(per_class: pd.DataFrame, bins: tuple[float, ...] = BINS) -> dict[str, float]:
    """The columns of `evaluate`: means over a table of `per_class_ap`, of classes with ground truth."""
    index = bin_index(per_class["instance_count"], bins)
    ap, frequency = per_class["AP"], per_class["frequency"]
    by_bin = {f"AP{name}": ap[index == i].mean() for i, name in enumerate(bin_names(bins))}
    return {
        **by_bin,
        "AP": ap.mean(),
        "bAP": pd.Series(by_bin).mean(),
        **{f"AP{tag}": ap[frequency == tag].mean() for tag in "rcf"},
        **{name: per_class[name].mean() for name in ("AP50", "AP75", "AR")},
    }


def evaluated_classes(per_class: pd.DataFrame, bins: tuple[float, ...] = BINS) -> dict[str, int]:
    """Classes with ground truth in each bin, and in all (the second row of Table 1)."""
    index = bin_index(per_class["instance_count"], bins)
    seen = per_class["AP"].notna()
    by_bin = {f"AP{name}": int(seen[index == i].sum()) for i, name in enumerate(bin_names(bins))}
    return by_bin | {"AP": int(seen.sum())}
