"""Evaluates many rows on one cache, in as few passes as memory allows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from calib.scoring import Scorer
from extract.cache.reader import RoICache
from fuse.config import EvaluationConfig
from fuse.defaults import MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.compare import compare_rows
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.row_comparison import RowComparison
from fuse.fusion import Fusion
from fuse.inference import detect_many
from fuse.selection.grids import Row

PASS_BYTES = 1 << 30
"""Detections in memory at a time."""
DETECTION_BYTES = 64


class Evaluated(NamedTuple):
    """The tables of rows, and the detections of those that were to be kept, by name."""

    tables: RowComparison
    detections: dict[str, Detections]


def evaluate_on(
    cache: RoICache,
    rows: Sequence[Row],
    scorers: Mapping[str, Scorer],
    annotations: EvaluationDataset,
    config: EvaluationConfig,
    *,
    samples: int = 0,
    keep: Collection[str] = (),
) -> Evaluated:
    """Detects and evaluates rows on the images of a cache.

    Args:
        cache: a val cache.
        rows: those of one setting lie in a row, so that they share its scores.
        scorers: by the name of the row's setting.
        annotations: of the cache's images.
        config: how they are evaluated.
        samples: number of resamples for intervals; rows of all passes see the same.
        keep: names of the rows whose detections are returned.
    """
    parts: list[RowComparison] = []
    kept: dict[str, Detections] = {}
    for some in _passes(rows, len(cache)):
        fusions = {row.name: Fusion.for_cache(cache, row.fusion, scorers[row.setting.name]) for row in some}
        detections = detect_many(cache, fusions, masks="segm" in config.iou_types, progress=True)
        kept |= {name: detections[name] for name in keep if name in detections}
        options = config.row_options
        parts.append(compare_rows(annotations, detections, cache.classes, samples=samples, progress=True, **options))
    order = [(iou_type, row.name) for iou_type in config.iou_types for row in rows]
    summary = pd.concat([part.summary for part in parts]).loc[order]
    per_class, resampled = (pd.concat([getattr(part, name) for part in parts]) for name in ("per_class", "samples"))
    return Evaluated(RowComparison(summary, per_class, resampled, rows[0].name), kept)


def _passes(rows: Sequence[Row], images: int) -> Iterator[list[Row]]:
    """Yields the rows of one pass over a cache after the other; those of a setting stay together."""
    limit = max(1, PASS_BYTES // (images * MAX_DETECTIONS * DETECTION_BYTES))
    some: list[Row] = []
    for _, own in groupby(rows, lambda row: row.setting.name):
        group = list(own)
        if some and len(some) + len(group) > limit:
            yield some
            some = []
        some += group
    if some:
        yield some
