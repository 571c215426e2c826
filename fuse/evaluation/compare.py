"""Evaluates rows of detections of the same images, and compares them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from extract.data.bins import BINS, bin_names
from fuse.defaults import BOOTSTRAP_SAMPLES, CONFIDENCE, ENGINE
from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.engines import AREAS
from fuse.evaluation.metrics import evaluated_rows, tables_of
from fuse.evaluation.protocols import resolve_iou_types, resolve_protocol
from fuse.evaluation.resamples import Resamples, ap_columns, draw_images
from fuse.evaluation.row_comparison import RowComparison

if TYPE_CHECKING:
    from fuse.evaluation.native import Matches


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
    progress: bool = True,
) -> RowComparison:
    """Evaluates rows of detections of the same images, with bootstrap intervals over images and paired differences.

    Example: `fuse.compare("val.json", {"original": before, "cat": after}, cache.classes)`

    Args:
        annotations, classes, bins, protocol, fixed_ap, max_detections, engine, image_ids, progress: as of `evaluate`.
        rows: detections by name.
        baseline: the row that the others are compared with; by default the first.
        iou_type: "segm", "bbox" or both; by default both if all rows and the annotations have masks, else "bbox".
        samples: number of resamples; 0 leaves intervals out.
        confidence: share of the resamples inside an interval.
        seed: of the draws. The same images and seed give the same resamples.

    Raises ValueError as `evaluate` does, and for a baseline that is no row.
    """
    dataset = load_annotations(annotations, image_ids)
    return compare_rows(
        dataset,
        rows,
        classes,
        baseline=baseline,
        iou_types=resolve_iou_types(iou_type, dataset, rows.values()),
        bins=bins,
        protocol=resolve_protocol(dataset, protocol),
        progress=progress,
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
    errors: bool = False,
    **options: Any,
) -> RowComparison:
    """Evaluates rows as `evaluate_rows` does, and resamples the images as `compare` does; arguments are theirs.

    With `errors`, the result has the table of `fuse.error_table` as well, of the same matches.
    """
    _check(detections, baseline, samples, confidence)
    protocol = protocol or annotations.protocol
    resamples = _draw(annotations, classes, bins, protocol, samples, seed) if samples else None
    if resamples or errors:
        options["measure"] = partial(_measure, resamples=resamples, classes=classes if errors else None, bins=bins)
        options["every_class"] = errors  # those without objects are confused with others as well
    tables, resampled, error_rows = {}, {}, {}
    for row in evaluated_rows(annotations, detections, classes, iou_types, protocol, progress, **options):
        tables[row.key] = row.table
        if resamples:
            resampled[row.key] = _sample_table(resamples, row.measured.resampled, bins)
        if errors:
            error_rows[row.key] = row.measured.errors
    evaluated, names = tables_of(tables, bins), ["iou_type", "row", "sample"]
    empty = evaluated.summary.filter(like="AP").iloc[:0].assign(sample=0).set_index("sample", append=True)
    all_samples = pd.concat(resampled, names=names) if resampled else empty
    error_table = pd.DataFrame(error_rows).T.rename_axis(["iou_type", "row"]) if errors else None
    return RowComparison(*evaluated, all_samples, baseline or next(iter(detections)), confidence, error_table)


class _Measured(NamedTuple):
    """AP (C, B) of resampled images and the columns of `fuse.error_table`, each None if it was not asked for."""

    resampled: np.ndarray | None
    errors: dict[str, float] | None


def _measure(
    matches: Matches,
    *,
    iou_type: str,
    resamples: Resamples | None,
    classes: pd.DataFrame | None,
    bins: tuple[float, ...],
) -> _Measured:
    """Returns what else is made of the matches of a row: errors if `classes` are given."""
    from fuse.evaluation.image_bootstrap import resample  # imports numba
    from fuse.evaluation.row_errors import row_errors

    errors = None if classes is None else row_errors(matches, classes, bins, iou_type)
    return _Measured(resample(matches, *resamples) if resamples else None, errors)


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
    num_images = len({image["id"] for image in annotations["images"]})
    return Resamples(columns, draw_images(num_images, samples, seed))


def _sample_table(resamples: Resamples, ap: np.ndarray, bins: tuple[float, ...]) -> pd.DataFrame:
    """Returns AP (C, B) of a row as a table, a row per resample, in the order of the columns of `summarize`."""
    names = [column.name for column in resamples.columns]
    table = pd.DataFrame(ap.T, columns=names)
    own = [f"AP{name}" for name in bin_names(bins)]
    table.insert(len(own) + 1, "bAP", table[own].mean(axis=1))
    return table
