"""Plots of AP and of proposal recall; `fuse.plots` has the set-up of the examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from extract.data.bins import BINS, bin_index, bin_names
from fuse.defaults import TAIL
from fuse.evaluation.class_bootstrap import bootstrap_intervals
from fuse.plots.axes import COLOURS, axes_or_new, count_axis, draw_bars, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^v<>"
CLASSES_PER_DECADE = 3
"""Points of the mean AP per factor of ten in training instances."""


def ap_by_count(tables: Mapping[str, pd.DataFrame], *, tail: float | None = TAIL, ax: Axes | None = None) -> Axes:
    """Plots AP of each class by its number of training instances, and its mean by thirds of a factor of ten.

    >>> ax = fuse.plots.ap_by_count(tables)
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'AP')

    Args:
        tables: of `per_class_ap`, by row. Classes without AP are left out, as are those without training instances.
        tail: classes with fewer training instances are marked as tail classes; None and 0 leave the mark out.
        ax: to draw into; None makes a new figure.
    """
    ax = axes_or_new(ax)
    highest = 1.0
    for i, (name, table) in enumerate(tables.items()):
        shown = counted(table)
        counts, ap = shown["instance_count"].to_numpy(float), shown["AP"].to_numpy(float)
        points = ax.scatter(counts, ap, s=14, color=COLOURS[i % len(COLOURS)], alpha=0.45, linewidths=0)
        points.set_gid(f"points-{i}")
        groups = pd.DataFrame({"count": np.log(counts), "ap": ap}).groupby(_thirds(counts)).mean()
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linewidth": 2,
        }
        ax.plot(np.exp(groups["count"]), groups["ap"], label=name, **style)
        highest = max(highest, *ap)
    if tail:
        ax.axvline(tail, color="grey", linestyle=":", linewidth=1)
        ax.annotate("tail ", (tail, 1), xycoords=("data", "axes fraction"), ha="right", va="top", color="grey")
    ax.set(ylabel="AP", ylim=(-0.02 * highest, 1.08 * highest))
    return finish(count_axis(ax))


def per_bin(
    tables: Mapping[str, pd.DataFrame],
    bins: tuple[float, ...] = BINS,
    *,
    intervals: Mapping[str, pd.DataFrame] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plots the mean AP of each bin of training instances as bars, a bar per row, with 95% intervals.

    >>> ax = fuse.plots.per_bin(tables)
    >>> [text.get_text().split(chr(10))[0] for text in ax.get_xticklabels()]
    ['(0,10)', '[1000,-)']

    Args:
        tables: of `per_class_ap`, by row.
        bins: edges of half-open bins of training instances. Bins without evaluated classes are left out.
        intervals: of each row, columns low and high, indexed by `AP` and the name of a bin; by default those of
            `fuse.evaluation.class_bootstrap.bootstrap_intervals`, over classes.
        ax: to draw into; None makes a new figure.
    """
    ax = axes_or_new(ax)
    evaluated = bin_index(next(iter(tables.values())).dropna(subset="AP")["instance_count"].to_numpy(), bins)
    kept = [i for i in range(len(bins) - 1) if (evaluated == i).any()]
    names = [bin_names(bins)[i] for i in kept]
    centers = np.arange(len(kept))
    for i, (name, table) in enumerate(tables.items()):
        index = bin_index(table["instance_count"].to_numpy(), bins)
        heights = np.array([table["AP"][index == k].mean() for k in kept])
        bounds = bootstrap_intervals(table, bins) if intervals is None else intervals[name]
        low, high = bounds.loc[[f"AP{one}" for one in names], ["low", "high"]].to_numpy(float).T
        whiskers = np.maximum([heights - low, high - heights], 0)
        error: dict[str, Any] = {"yerr": whiskers, "error_kw": {"elinewidth": 1, "ecolor": "#777777"}}
        draw_bars(ax, heights, name, i, len(tables), **error)
    counts = [f"{name}\n{(evaluated == i).sum()} classes" for name, i in zip(names, kept, strict=True)]
    ax.set_xticks(centers, counts)
    ax.set(xlabel="training instances of the class", ylabel="mean AP")
    return finish(ax)


def recall(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Plots how many objects of each bin the proposals cover, which bounds what calibration can reach.

    >>> table = pd.DataFrame({"objects": [9, 90, 99], "AR@100": [60.0, 70, 69], "AR@300": [64.0, 73, 72]},
    ...                      index=["(0,10)", "[10,100)", "all"])
    >>> fuse.plots.recall(table).get_ylabel()
    'average recall of proposals (%)'

    Args:
        table: of `extract.recall.proposal_recall`. Bins without objects are left out.
        ax: to draw into; None makes a new figure.
    """
    ax = axes_or_new(ax)
    shown = table[table["objects"] > 0]
    columns = [name for name in shown if name != "objects"]
    for i, name in enumerate(columns):
        draw_bars(ax, shown[name].to_numpy(), f"{name.removeprefix('AR@')} proposals", i, len(columns))
    ax.set_xticks(range(len(shown)), [f"{name}\n{count:,} objects" for name, count in shown["objects"].items()])
    ax.set(xlabel="training instances of the class", ylabel="average recall of proposals (%)", ylim=(0, 100))
    return finish(ax)


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the classes of a table of `per_class_ap` that `ap_by_count` shows: with AP and training instances."""
    return table[table["AP"].notna() & (table["instance_count"] > 0)]


def _thirds(counts: np.ndarray) -> np.ndarray:
    """Returns the third of a factor of ten that each count (N,) is in."""
    return np.floor(CLASSES_PER_DECADE * np.log10(counts))
