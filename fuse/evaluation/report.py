"""The HTML report: a table of results, AP per bin as bars, and the classes whose AP changed most."""

from __future__ import annotations

import io
import os
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from extract.data.bins import bin_index, bin_names
from extract.utils.files import write_bytes
from fuse.evaluation.bootstrap import bootstrap_intervals
from fuse.evaluation.comparison import RowComparison
from fuse.evaluation.intervals import iou_title

MAX_CHANGED = 15
"""Classes listed as gained, and as lost."""


def write_report(
    path: str | os.PathLike,
    comparison: RowComparison,
    bins: tuple[float, ...],
    baseline: str,
    candidate: str,
    scope: str,
) -> None:
    """Writes a report that needs no other file.

    Args:
        path: the HTML file.
        comparison: the rows.
        bins: edges of half-open bins of training instances.
        baseline, candidate: rows that are compared class by class.
        scope: sentence at the top, which images are evaluated.
    """
    sections, intervals = [], list(comparison.interval_tables().items())
    for i, iou_type in enumerate(comparison.summary.index.unique("iou_type")):
        table, classes = comparison.summary.loc[iou_type], comparison.per_class.loc[iou_type]
        shown = comparison.marked_summary(iou_type)
        gained, lost = _changes(classes.loc[baseline], classes.loc[candidate])
        sections.append(
            {
                "title": iou_title(iou_type),
                "table": shown.rename_axis("row").reset_index().to_html(index=False, border=0),
                "intervals": intervals and (intervals[i][0], intervals[i][1].to_html(border=0)),
                "bars": _bars(table, classes, bins),
                "gained": gained.to_html(index=False, border=0, float_format="{:.1f}".format),
                "lost": lost.to_html(index=False, border=0, float_format="{:.1f}".format),
            }
        )
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.jinja")
    html = page.render(sections=sections, baseline=baseline, candidate=candidate, scope=scope)
    write_bytes(path, html.encode())


def _changes(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the classes whose AP rose most, and those whose AP fell most; arguments are of `per_class_ap`."""
    table = pd.DataFrame(
        {
            "class": after["name"],
            "training instances": after["instance_count"],
            "before": before["AP"],
            "after": after["AP"],
            "change": after["AP"] - before["AP"],
        }
    ).dropna()
    ordered = table.sort_values("change", kind="stable")
    gained = ordered[ordered["change"] > 0].iloc[::-1].head(MAX_CHANGED)
    return gained, ordered[ordered["change"] < 0].head(MAX_CHANGED)


def _bars(table: pd.DataFrame, classes: pd.DataFrame, bins: tuple[float, ...]) -> str:
    """Returns the AP of each bin as SVG: a group of bars per bin, a bar per row; `classes` of all rows."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes, names, width = figure.add_subplot(), [f"AP{name}" for name in bin_names(bins)], 0.8 / len(table)
    centers = np.arange(len(names))
    for i, row in enumerate(table.index):
        heights = table.loc[row, names].to_numpy(float)
        intervals = bootstrap_intervals(classes.loc[row], bins).loc[names].to_numpy(float)
        whiskers = np.abs(intervals.T - heights)
        axes.bar(centers + (i - (len(table) - 1) / 2) * width, heights, width * 0.9, yerr=whiskers, label=row)
    evaluated = bin_index(classes.loc[table.index[0]].dropna(subset="AP")["instance_count"], bins)
    axes.set_xticks(centers, [f"{name}\n{(evaluated == i).sum()} classes" for i, name in enumerate(names)])
    axes.set_ylabel("AP")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]
