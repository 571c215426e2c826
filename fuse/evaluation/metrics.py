"""Average precision per class, per bin of training instances and over the dataset, by LVIS's or COCO's protocol.

Engines compute precision and recall: kernels of our own; hotcoco; and the official packages `lvis` and `pycocotools` as
slow references. All get the same annotations and the same detections; the means are computed here for all. `compare`
adds intervals over images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from extract.data.bins import BINS, bin_index, bin_names
from extract.utils.progress import FIRST_LINE, progress_bar
from fuse.defaults import ENGINE, FIXED_AP_DETECTIONS_PER_CLASS
from fuse.detections import Detections
from fuse.evaluation.checks import check_detections, with_categories
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.engines import PrecisionRecall
from fuse.evaluation.protocols import (
    IOU_TYPES,
    MEASURES,
    check_engine,
    class_measures,
    measured_precision_recall,
    precision_recall,
    resolve_cap,
    resolve_iou_types,
    resolve_protocol,
)


class Tables(NamedTuple):
    """AP of several rows.

    Attributes:
        summary: the columns of `evaluate`, indexed by (iou_type, row).
        per_class: the columns of `per_class_ap`, indexed by (iou_type, row, class).
    """

    summary: pd.DataFrame
    per_class: pd.DataFrame


def evaluate(
    annotations: str | os.PathLike | dict,
    detections: Detections,
    classes: pd.DataFrame,
    *,
    bins: tuple[float, ...] = BINS,
    iou_type: str | Iterable[str] | None = None,
    protocol: str | None = None,
    fixed_ap: bool = False,
    max_detections: int | None = None,
    engine: str = ENGINE,
    image_ids: Iterable[int] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Computes average precision, in points of 0 to 100, by LVIS's or COCO's protocol.

    Args:
        annotations: an LVIS or COCO annotation file, or its content, which is not changed.
        detections: of any of its images.
        classes: the class table: category_id, name, frequency, and instance_count in the **training** data, which
            decides the bin. Counts in the annotation file are ignored. It may have classes that the file lacks.
        bins: edges of half-open bins of training instances.
        iou_type: "segm", "bbox" or both; by default both if detections and annotations have masks, else "bbox".
        protocol: "federated" (LVIS's) or "exhaustive" (COCO's); by default as the fields of the file's images tell.
        fixed_ap: the best 10,000 detections per class over the dataset, no cap per image.
        max_detections: cap per image, best first; unused with `fixed_ap`. By default 300 by LVIS's protocol and 100 by
            COCO's, whose code caps the detections of each image and class.
        engine: "native", kernels of our own; "hotcoco"; or "lvis" (LVIS's protocol) or "pycocotools" (COCO's).
        image_ids: images to evaluate; None evaluates all images of the file.
        progress: show it on stderr, after two seconds.

    Returns:
        One row per IoU type. Columns: AP of each bin, AP (mean over all classes with ground truth), bAP (mean of the
        bins), APr, APc, APf by the tag `frequency`, AP50, AP75, AR; by COCO's protocol also APs, APm, APl and AR@1,
        AR@10, ARs, ARm, ARl. NaN where no class has ground truth. `.attrs` has `protocol`, and the number of classes
        with ground truth, `evaluated`, per bin and in total.

    Raises:
        ValueError: annotations that are not valid, categories that `classes` lacks, detections of unknown images or
            categories or with masks of another size, "segm" for detections without masks.
    """
    dataset = load_annotations(annotations, image_ids)
    iou_types, protocol = resolve_iou_types(iou_type, dataset, [detections]), resolve_protocol(dataset, protocol)
    options: dict[str, Any] = {"fixed_ap": fixed_ap, "max_detections": max_detections, "engine": engine}
    options |= {"iou_types": iou_types, "bins": bins, "protocol": protocol, "progress": progress}
    tables = evaluate_rows(dataset, {"": detections}, classes, **options)
    summary = tables.summary.droplevel("row")
    summary.attrs["evaluated"] = evaluated_classes(tables.per_class.loc[iou_types[0]].loc[""], bins)
    summary.attrs["protocol"] = protocol
    return summary


def evaluate_rows(
    annotations: EvaluationDataset,
    detections: Mapping[str, Detections],
    classes: pd.DataFrame,
    *,
    iou_types: Iterable[str] = ("segm",),
    bins: tuple[float, ...] = BINS,
    protocol: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Tables:
    """Evaluates the detections of several rows.

    Args:
        annotations: of `load_annotations`.
        detections: of each row, by name.
        classes, bins, protocol: as of `evaluate`.
        iou_types: "segm", "bbox" or both.
        progress: show a progress bar on stderr.
        options: fixed_ap, max_detections and engine of `evaluate`.
    """
    protocol = protocol or annotations.protocol
    evaluated = evaluated_rows(annotations, detections, classes, iou_types, protocol, progress, **options)
    return tables_of({row.key: row.table for row in evaluated}, bins)


class EvaluatedRow(NamedTuple):
    """A row of detections evaluated with one IoU type.

    Attributes:
        key: (iou_type, row).
        table: of `per_class_ap`.
        measured: what else was asked of the row's matches; None if nothing was.
    """

    key: tuple[str, str]
    table: pd.DataFrame
    measured: Any


def evaluated_rows(
    annotations: EvaluationDataset,
    detections: Mapping[str, Detections],
    classes: pd.DataFrame,
    iou_types: Iterable[str],
    protocol: str,
    progress: bool,
    **options: Any,
) -> Iterator[EvaluatedRow]:
    """Yields every row with every IoU type; `options` are of `class_tables`, other arguments of `evaluate_rows`."""
    iou_types, rows = list(iou_types), list(detections.values())
    total = len(iou_types) * len(rows)
    with progress_bar(total=total, desc="evaluate", unit="row", shown=progress, delay=FIRST_LINE) as bar:
        for iou_type in iou_types:
            found = class_tables(annotations, rows, classes, iou_type, protocol, **options)
            for name, (table, measured) in zip(detections, found, strict=True):
                yield EvaluatedRow((iou_type, name), table, measured)
                bar.update()


def tables_of(class_tables: Mapping[tuple[str, str], pd.DataFrame], bins: tuple[float, ...]) -> Tables:
    """Returns the tables of several rows, given those of `per_class_ap` by (iou_type, row)."""
    summary = pd.DataFrame({key: summarize(table, bins) for key, table in class_tables.items()}).T
    summary.index.names = ["iou_type", "row"]
    return Tables(summary, pd.concat(class_tables, names=["iou_type", "row", "class"]))


def per_class_ap(
    annotations: str | os.PathLike | dict,
    detections: Detections,
    classes: pd.DataFrame,
    *,
    iou_type: str = "segm",
    protocol: str | None = None,
    fixed_ap: bool = False,
    max_detections: int | None = None,
    engine: str = ENGINE,
    image_ids: Iterable[int] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Returns the class table with columns AP, AP50, AP75, AR and those of COCO's protocol in points.

    NaN for classes without ground truth. Arguments and errors are those of `evaluate`, which averages this table.
    """
    dataset = load_annotations(annotations, image_ids)
    protocol = resolve_protocol(dataset, protocol)
    options: dict[str, Any] = {"fixed_ap": fixed_ap, "max_detections": max_detections, "engine": engine}
    (row,) = evaluated_rows(dataset, {"": detections}, classes, [iou_type], protocol, progress, **options)
    return row.table


def class_tables(
    dataset: EvaluationDataset,
    rows: Sequence[Detections],
    classes: pd.DataFrame,
    iou_type: str,
    protocol: str,
    fixed_ap: bool = False,
    max_detections: int | None = None,
    engine: str = ENGINE,
    measure: Callable[..., Any] | None = None,
    every_class: bool = False,
) -> Iterator[tuple[pd.DataFrame, Any]]:
    """Yields the table of `per_class_ap` of each row of detections, and `measure(matches, iou_type=…)`.

    Other arguments and errors are those of `evaluate`. With another engine, `measure` gets native matches all the same,
    of `every_class` as in `coco_matches`.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type is {iou_type!r}, expected {' or '.join(map(repr, IOU_TYPES))}")
    check_engine(protocol, engine)
    cap = resolve_cap(protocol, max_detections)
    dataset = with_categories(dataset, classes)
    for row in rows:
        check_detections(dataset, row, iou_type)
    if fixed_ap:
        rows = [row.top_per_class(FIXED_AP_DETECTIONS_PER_CLASS) for row in rows]
    rank = np.argsort(np.argsort(classes["category_id"].to_numpy(np.int64)))  # the engines sort classes by category id
    table = classes[["category_id", "name", "frequency", "instance_count"]]
    found: Iterator[tuple[PrecisionRecall, Any]]
    arguments = (protocol, engine, dataset, rows, iou_type, None if fixed_ap else cap)
    if measure is None:
        found = ((curves, None) for curves in precision_recall(*arguments))
    else:
        found = measured_precision_recall(*arguments, partial(measure, iou_type=iou_type), every_class)
    for curves, measured in found:
        yield table.assign(**{name: values[rank] for name, values in class_measures(curves).items()}), measured


def summarize(per_class: pd.DataFrame, bins: tuple[float, ...] = BINS) -> dict[str, float]:
    """Returns the columns of `evaluate`: means over the classes with ground truth of a table of `per_class_ap`."""
    index = bin_index(per_class["instance_count"].to_numpy(), bins)
    ap, frequency = per_class["AP"], per_class["frequency"]
    by_bin = {f"AP{name}": ap[index == i].mean() for i, name in enumerate(bin_names(bins))}
    return {
        **by_bin,
        "AP": ap.mean(),
        "bAP": pd.Series(by_bin).mean(),
        **{f"AP{tag}": ap[frequency == tag].mean() for tag in "rcf"},
        **{name: per_class[name].mean() for name in MEASURES if name in per_class},
    }


def evaluated_classes(per_class: pd.DataFrame, bins: tuple[float, ...] = BINS) -> dict[str, int]:
    """Returns the number of classes with ground truth, per bin and in total (the second row of Table 1)."""
    index = bin_index(per_class["instance_count"].to_numpy(), bins)
    evaluated = per_class["AP"].notna()
    by_bin = {f"AP{name}": int(evaluated[index == i].sum()) for i, name in enumerate(bin_names(bins))}
    return by_bin | {"AP": int(evaluated.sum())}
