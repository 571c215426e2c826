"""Tables of results as the commands print them."""

from __future__ import annotations

import pandas as pd

from extract.data.bins import bin_counts
from fuse.config import EvaluationConfig
from fuse.evaluation.metrics import evaluated_classes


def results_text(config: EvaluationConfig, summary: pd.DataFrame, per_class: pd.DataFrame, scope: str) -> str:
    """The tables to print; the first line says what was evaluated."""
    iou_type, row = summary.index[0]
    first = per_class.loc[iou_type].loc[row]
    seen = evaluated_classes(first, config.bin_edges)
    total = dict(zip(seen, [*bin_counts(first["instance_count"], config.bin_edges), len(first)], strict=True))
    kind = "fixed AP" if config.fixed_ap else f"{config.max_detections} detections per image"
    lines = [f"Evaluated on {scope}; {kind}; bins by training instances; figures in points (0-100)."]
    lines.append("Classes with ground truth: " + ", ".join(f"{n} {seen[n]} of {total[n]}" for n in seen) + ".")
    for iou_type in config.iou_types:
        table = summary.loc[iou_type].rename_axis(None)
        title = "Mask AP" if iou_type == "segm" else "Box AP"
        lines += ["", title, table.to_string(float_format="{:.1f}".format)]
    return "\n".join(lines)
