"""Tables of results as the commands print them."""

from __future__ import annotations

import pandas as pd

from extract.data.bins import bin_counts
from fuse.evaluation.intervals import iou_title
from fuse.evaluation.metrics import evaluated_classes
from fuse.evaluation.protocols import PROTOCOLS
from fuse.evaluation.row_comparison import RowComparison


def results_text(
    comparison: RowComparison,
    scope: str,
    *,
    bins: tuple[float, ...],
    protocol: str,
    fixed_ap: bool,
    max_detections: int | None,
) -> str:
    """Returns the tables to print, after a line that describes the evaluation.

    Args:
        comparison: the rows.
        scope: which images are evaluated.
        bins, protocol, fixed_ap, max_detections: of the evaluation.
    """
    summary = comparison.summary
    iou_type, row = summary.index[0]
    classes = comparison.per_class.loc[iou_type].loc[row]
    evaluated = evaluated_classes(classes, bins)
    totals = [*bin_counts(classes["instance_count"].to_numpy(), bins), len(classes)]
    counts = ", ".join(f"{n} {evaluated[n]} of {total}" for n, total in zip(evaluated, totals, strict=True))
    kind = "fixed AP" if fixed_ap else f"{max_detections} detections per image"
    rule = f"{PROTOCOLS[protocol].title} ({protocol} annotations)"
    lines = [f"Evaluated on {scope}; {kind}; bins by training instances; figures in points (0-100); {rule}."]
    empty = summary.columns[summary.isna().all()].tolist()
    left_out = f" Columns without any are left out: {', '.join(empty)}." if empty else ""
    lines.append(f"Classes with ground truth: {counts}.{left_out}")
    return "\n".join([*lines, "", comparison.text()])


def errors_text(errors: pd.DataFrame) -> str:
    """Returns the tables of `error_table`, without empty columns, after a line that describes them."""
    lines = [
        "Where the errors are, at IoU 0.5: points of AP50 gained without each type of error; calibration error in",
        "points (LaECE: of IoU as well); in percent, objects whose best detection, by boxes, is of another class",
        "(confused) or of one in a bin of more instances (up), or that have none (missed).",
    ]
    for iou_type in errors.index.unique("iou_type"):
        table = errors.dropna(axis="columns", how="all").loc[iou_type].rename_axis(None)
        lines += [
            "",
            iou_title(str(iou_type)).replace(" AP", " errors"),
            table.T.to_string(float_format="{:.1f}".format),
        ]
    return "\n".join(lines)
