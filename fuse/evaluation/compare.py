"""Evaluates rows of detections of the same images, and compares them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from extract.data.bins import BINS, bin_names
from extract.utils.progress import progress_bar
from fuse.defaults import BOOTSTRAP_SAMPLES, CONFIDENCE, ENGINE
from fuse.detections import Detections
from fuse.evaluation.checks import with_categories
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.engines import AREAS
from fuse.evaluation.metrics import IOU_TYPES, class_tables, tables_of
from fuse.evaluation.protocols import resolve_protocol
from fuse.evaluation.resamples import Resamples, ap_columns, draw_images
from fuse.evaluation.row_comparison import RowComparison


def compare(
    annotations: str | os.PathLike | dict,
    rows: Mapping[str, Detections],
    classes: pd.DataFrame,
    *,
    baseline: str | None = None,
    bins: tuple[float, ...] = BINS,
    iou_type: str | Iterable[str] | None = None,
    protocol: str | None = None,
    fixed_ap: bool = False,
    max_detections: int | None = None,
    engine: str = ENGINE,
    image_ids: Iterable[int] | None = None,
    samples: int = BOOTSTRAP_SAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> RowComparison:
    """Evaluates rows of detections of the same images, with bootstrap intervals over images and paired differences.

    Example: `fuse.compare("val.json", {"original": before, "cat": after}, cache.classes)`

    Args:
        annotations, classes, bins, protocol, fixed_ap, max_detections, engine, image_ids: as of `evaluate`.
        rows: detections by name.
        baseline: the row that the others are compared with; by default the first.
        iou_type: "segm", "bbox" or both; by default both if all rows and the annotations have masks, else "bbox".
        samples: number of resamples; 0 leaves intervals out.
        confidence: share of the resamples inside an interval.
        seed: of the draws. The same images and seed give the same resamples.

    Raises ValueError as `evaluate` does, and for a baseline that is no row.
    """
    dataset = load_annotations(annotations, image_ids)
    if iou_type is None:
        masks = dataset.has_masks and all(row.rles is not None for row in rows.values())
        iou_type = IOU_TYPES if masks else "bbox"
    return compare_rows(
        dataset,
        rows,
        classes,
        baseline=baseline,
        iou_types=[iou_type] if isinstance(iou_type, str) else list(iou_type),
        bins=bins,
        protocol=resolve_protocol(dataset, protocol),
        samples=samples,
        confidence=confidence,
        seed=seed,
        fixed_ap=fixed_ap,
        max_detections=max_detections,
        engine=engine,
    )


def compare_rows(
    annotations: EvaluationDataset,
    detections: Mapping[str, Detections],
    classes: pd.DataFrame,
    *,
    baseline: str | None = None,
    iou_types: Iterable[str] = ("segm",),
    bins: tuple[float, ...] = BINS,
    protocol: str | None = None,
    progress: bool = False,
    samples: int = BOOTSTRAP_SAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    **options: Any,
) -> RowComparison:
    """Evaluates rows as `evaluate_rows` does, and resamples the images as `compare` does; arguments are theirs."""
    _check(detections, baseline, samples, confidence)
    protocol = protocol or ("federated" if annotations.federated else "exhaustive")
    iou_types, rows = list(iou_types), list(detections.values())
    resamples = _draw(annotations, classes, bins, protocol, samples, seed) if samples else None
    tables, resampled = {}, {}
    with progress_bar(total=len(iou_types) * len(rows), desc="evaluate", unit="row", shown=progress) as bar:
        for iou_type in iou_types:
            found = class_tables(annotations, rows, classes, iou_type, protocol, resamples=resamples, **options)
            for name, (table, ap) in zip(detections, found, strict=True):
                tables[iou_type, name] = table
                if resamples and ap is not None:
                    resampled[iou_type, name] = _sample_table(resamples, ap, bins)
                bar.update()
    evaluated, names = tables_of(tables, bins), ["iou_type", "row", "sample"]
    empty = evaluated.summary.filter(like="AP").iloc[:0].assign(sample=0).set_index("sample", append=True)
    all_samples = pd.concat(resampled, names=names) if resampled else empty
    return RowComparison(*evaluated, all_samples, baseline or next(iter(detections)), confidence)


def _check(rows: Mapping[str, Detections], baseline: str | None, samples: int, confidence: float) -> None:
    """Raises ValueError for arguments of `compare`."""
    if not rows:
        raise ValueError("rows is empty, expected detections by name")
    if baseline is not None and baseline not in rows:
        raise ValueError(f"baseline is {baseline!r}, expected one of {', '.join(map(repr, rows))}")
    if samples < 0:
        raise ValueError(f"samples is {samples}, expected at least 0")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected between 0 and 1")


def _draw(
    annotations: EvaluationDataset,
    classes: pd.DataFrame,
    bins: tuple[float, ...],
    protocol: str,
    samples: int,
    seed: int,
) -> Resamples:
    """Draws the resamples of the images."""
    columns = ap_columns(classes, bins, len(AREAS) if protocol == "exhaustive" else 1)
    num_images = len({image["id"] for image in with_categories(annotations, classes)["images"]})
    return Resamples(columns, draw_images(num_images, samples, seed))


def _sample_table(resamples: Resamples, ap: np.ndarray, bins: tuple[float, ...]) -> pd.DataFrame:
    """Returns AP (C, B) of a row as a table, a row per resample, in the order of the columns of `summarize`."""
    names = [column.name for column in resamples.columns]
    table = pd.DataFrame(ap.T, columns=names)
    own = [f"AP{name}" for name in bin_names(bins)]
    table.insert(len(own) + 1, "bAP", table[own].mean(axis=1))
    return table
