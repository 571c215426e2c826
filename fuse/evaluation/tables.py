"""Tables of results as the commands print them."""

from __future__ import annotations

import pandas as pd

from extract.data.bins import bin_counts
from fuse.evaluation.metrics import evaluated_classes


def results_text(
    summary: pd.DataFrame,
    per_class: pd.DataFrame,
    scope: str,
    *,
    bins: tuple[float, ...],
    fixed_ap: bool,
    max_detections: int,
) -> str:
    """Returns the tables to print, after a line that describes the evaluation.

    Args:
        summary, per_class: tables of `evaluate_rows`.
        scope: which images are evaluated.
        bins, fixed_ap, max_detections: of the evaluation.
    """
    iou_type, row = summary.index[0]
    classes = per_class.loc[iou_type].loc[row]
    evaluated = evaluated_classes(classes, bins)
    totals = [*bin_counts(classes["instance_count"].to_numpy(), bins), len(classes)]
    counts = ", ".join(f"{n} {evaluated[n]} of {total}" for n, total in zip(evaluated, totals, strict=True))
    kind = "fixed AP" if fixed_ap else f"{max_detections} detections per image"
    lines = [f"Evaluated on {scope}; {kind}; bins by training instances; figures in points (0-100)."]
    lines.append(f"Classes with ground truth: {counts}.")
    for iou_type in summary.index.unique("iou_type"):
        table = summary.loc[iou_type].rename_axis(None)
        lines += ["", iou_title(iou_type), table.to_string(float_format="{:.1f}".format)]
    return "\n".join(lines)


def iou_title(iou_type: str) -> str:
    """Returns the title of a table."""
    return "Mask AP" if iou_type == "segm" else "Box AP"
