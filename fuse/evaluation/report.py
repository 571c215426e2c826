"""One HTML file that shows a table of results, its bins as bars, and the classes that changed most."""

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
from fuse.evaluation.metrics import bootstrap_intervals

CHANGED = 15
"""Classes listed as gained and as lost."""


def write_report(
    path: str | os.PathLike,
    summary: pd.DataFrame,
    per_class: pd.DataFrame,
    bins: tuple[float, ...],
    baseline: str,
    shown: str,
    scope: str,
) -> None:
    """Writes a self-contained report.

    Args:
        path: the HTML file.
        summary, per_class: what `evaluate_rows` returns.
        bins: edges of the bins.
        baseline, shown: rows whose classes are compared.
        scope: the sentence at the top.
    """
    sections = []
    for iou_type in summary.index.unique("iou_type"):
        table, classes = summary.loc[iou_type], per_class.loc[iou_type]
        gained, lost = _changes(classes.loc[baseline], classes.loc[shown])
        sections.append(
            {
                "title": "Mask AP" if iou_type == "segm" else "Box AP",
                "table": table.reset_index().to_html(index=False, border=0, float_format="{:.1f}".format),
                "bars": _bars(table, classes, bins),
                "gained": gained.to_html(index=False, border=0, float_format="{:.1f}".format),
                "lost": lost.to_html(index=False, border=0, float_format="{:.1f}".format),
            }
        )
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.jinja")
    html = page.render(sections=sections, baseline=baseline, shown=shown, scope=scope)
    write_bytes(path, html.encode())


def _changes(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The classes whose AP rose and fell most."""
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
    gained = ordered[ordered["change"] > 0].iloc[::-1].head(CHANGED)
    return gained, ordered[ordered["change"] < 0].head(CHANGED)


def _bars(table: pd.DataFrame, classes: pd.DataFrame, bins: tuple[float, ...]) -> str:
    """AP by bin, a group of bars per bin and a bar per row, as SVG."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes, names, width = figure.add_subplot(), [f"AP{name}" for name in bin_names(bins)], 0.8 / len(table)
    places = np.arange(len(names))
    for i, row in enumerate(table.index):
        heights = table.loc[row, names].to_numpy(float)
        spans = bootstrap_intervals(classes.loc[row], bins).loc[names].to_numpy(float)
        whiskers = np.abs(spans.T - heights)
        axes.bar(places + (i - (len(table) - 1) / 2) * width, heights, width * 0.9, yerr=whiskers, label=row)
    evaluated = bin_index(classes.loc[table.index[0]].dropna(subset="AP")["instance_count"], bins)
    axes.set_xticks(places, [f"{name}\n{(evaluated == i).sum()} classes" for i, name in enumerate(names)])
    axes.set_ylabel("AP")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]
