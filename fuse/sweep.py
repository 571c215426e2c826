"""The rows of the paper's Tables 2, 4, 6 and 7, detected together and evaluated in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
from tqdm import tqdm

from calib.scoring import Scorer
from extract.bins import BINS
from fuse.annotations import Loaded
from fuse.detections import Detections
from fuse.evaluation import per_class_ap, summarize
from fuse.rows import Row

BASELINE = "original@0.0"


def paper_rows(calibrated: Scorer | None, **options) -> dict[str, Row]:
    """All rows, or those that need no calibrated scorer. `options` are further fields of `Row`."""
    rows = {
        "original@0.05": Row("original", score_threshold=0.05, **options),
        BASELINE: Row("original", **options),
        "props-gt": Row("props-gt", **options),
    }
    if calibrated is not None:
        modes = {
            "only": "new",
            "avg": "avg",
            "det": "det",
            "cat": "cat",
            "cat-thr": "cat-thr",
            "cat-scale": "cat-scale",
        }
        original = options.get("original")
        if original is not None and original.activation == "sigmoid" and options.get("scale") is None:
            del modes["cat-scale"]  # such a detector's background is not trained, so there is no ratio of it
        rows |= {f"rhead-{name}": Row(mode, calibrated, **options) for name, mode in modes.items()}
        # Table 7: of a strong detector only the rarest bin is replaced.
        rows["rhead-cat@10"] = Row("cat", calibrated, **{**options, "tail": 10})
    return rows


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
