"""Tables of results as the commands print them."""

from __future__ import annotations

import pandas as pd

from extract.data.bins import bin_counts
from fuse.evaluation.metrics import evaluated_classes
from fuse.evaluation.protocols import PROTOCOLS


def results_text(
    summary: pd.DataFrame,
    per_class: pd.DataFrame,
    scope: str,
    *,
    bins: tuple[float, ...],
    protocol: str,
    fixed_ap: bool,
    max_detections: int | None,
) -> str:
    """Returns the tables to print, after a line that describes the evaluation.

    Args:
        summary, per_class: tables of `evaluate_rows`.
        scope: which images are evaluated.
        bins, protocol, fixed_ap, max_detections: of the evaluation.
    """
    iou_type, row = summary.index[0]
    classes = per_class.loc[iou_type].loc[row]
    evaluated = evaluated_classes(classes, bins)
    totals = [*bin_counts(classes["instance_count"].to_numpy(), bins), len(classes)]
    counts = ", ".join(f"{n} {evaluated[n]} of {total}" for n, total in zip(evaluated, totals, strict=True))
    kind = "fixed AP" if fixed_ap else f"{max_detections} detections per image"
    rule = f"{PROTOCOLS[protocol].title} ({protocol} annotations)"
    lines = [f"Evaluated on {scope}; {kind}; bins by training instances; figures in points (0-100); {rule}."]
    empty = summary.columns[summary.isna().all()].tolist()
    left_out = f" Columns without any are left out: {', '.join(empty)}." if empty else ""
    lines.append(f"Classes with ground truth: {counts}.{left_out}")
    for iou_type in summary.index.unique("iou_type"):
        table = summary.loc[iou_type].drop(columns=empty).rename_axis(None)
        lines += ["", iou_title(iou_type), table.to_string(float_format="{:.1f}".format)]
    return "\n".join(lines)


def iou_title(iou_type: str) -> str:
    """Returns the title of a table."""
    return "Mask AP" if iou_type == "segm" else "Box AP"
