"""Rows compared: AP with intervals over images, and paired differences from a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from fuse.defaults import CONFIDENCE
from fuse.evaluation.intervals import MARK, cells, iou_title, marked

UNIT = "in points (0-100)"
SUFFIXES = ("_low", "_high", "_difference", "_difference_low", "_difference_high", "_within_noise")
"""Of the columns that `RowComparison.metrics` adds to each column of AP."""


@dataclass(frozen=True, eq=False)
class RowComparison:
    """AP of several rows on the same images, with intervals over images and paired differences.

    The bootstrap is over images: the evaluated images are drawn with replacement, as many as there are, and AP is
    accumulated again from the same matches. A class without ground truth in a resample has no AP there and is left out
    of that resample's means, as a class without ground truth always is; a bin without classes is left out of bAP. All
    rows see the same resamples, so that the interval of a difference is of the same images. What a cap over the whole
    dataset keeps, as fixed AP's, is not chosen again.

    An interval is that of AP on datasets of this size: the percentiles of the resamples' deviation from their mean, put
    around the value. AP is higher the fewer different objects a class has, because interpolated precision is a maximum,
    and a resample has fewer. So the resamples' own percentiles lie too high, and may even leave the value out.

    Attributes:
        summary, per_class: the tables of `evaluate_rows`.
        samples: AP of each resample in points, indexed by (iou_type, row, sample); columns of AP and bAP. Without rows
            if nothing was resampled.
        baseline: the row that others are compared with.
        confidence: of the intervals.
        errors: the table of `fuse.error_table`; None if it was not asked for.
    """

    summary: pd.DataFrame
    per_class: pd.DataFrame
    samples: pd.DataFrame
    baseline: str
    confidence: float = CONFIDENCE
    errors: pd.DataFrame | None = None

    @property
    def num_samples(self) -> int:
        """Number of resamples; 0 if there are no intervals."""
        return self.samples.index.get_level_values("sample").nunique()

    @cached_property
    def intervals(self) -> pd.DataFrame:
        """AP with its interval: columns value, low, high in points, indexed by (iou_type, row, column)."""
        return self._with_bounds("value", self.samples, self.summary[self.samples.columns]).clip(0, 100)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """`differences_from` the baseline."""
        return self.differences_from(self.baseline)

    def differences_from(self, row: str) -> pd.DataFrame:
        """Returns how much the other rows differ from a row, with paired intervals.

        Columns difference, low, high in points and within_noise, which is whether the interval contains 0; indexed by
        (iou_type, row, column). Raises ValueError for an unknown row.
        """
        if row not in self.summary.index.unique("row"):
            names = ", ".join(map(repr, self.summary.index.unique("row")))
            raise ValueError(f"row is {row!r}, expected one of {names}")
        tables = self.samples, self.summary[self.samples.columns]
        own = [table.index.get_level_values("row") == row for table in tables]
        minuends = [table[~mask] for table, mask in zip(tables, own, strict=True)]
        subtrahends = [table[mask].droplevel("row") for table, mask in zip(tables, own, strict=True)]
        table = self._with_bounds(
            "difference",
            *(a - b.reindex(a.droplevel("row").index).to_numpy() for a, b in zip(minuends, subtrahends, strict=True)),
        )
        return table.assign(within_noise=(table["low"] <= 0) & (table["high"] >= 0))

    @property
    def metrics(self) -> pd.DataFrame:
        """The summary with columns beside each of AP: `AP_low`, `AP_high`, `AP_difference`, `AP_difference_low`,
        `AP_difference_high` and `AP_within_noise`; empty where there is nothing to compare."""
        if not self.num_samples:
            return self.summary
        wide = self.intervals[["low", "high"]].rename(columns="_{}".format)
        differences = self.differences.rename(columns={"low": "difference_low", "high": "difference_high"})
        known = differences["difference"].notna()
        differences["within_noise"] = differences["within_noise"].astype(object).where(known)
        wide = wide.join(differences.rename(columns="_{}".format)).unstack("column")
        wide.columns = [f"{column}{suffix}" for suffix, column in wide.columns]
        names = [f"{column}{suffix}" for column in self.samples.columns for suffix in SUFFIXES]
        return self.summary.join(wide.reindex(columns=names))

    def within_noise(self, iou_type: str, row: str) -> list[str]:
        """Returns the columns of AP in which a row is within noise of the baseline."""
        if not self.num_samples or row == self.baseline:
            return []
        marked = self.differences.loc[iou_type].loc[row]["within_noise"]
        return marked.index[marked.to_numpy(bool)].tolist()

    def _with_bounds(self, name: str, samples: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
        """Returns values with the bounds of their intervals, in the order of `values`."""
        tail = (1 - self.confidence) / 2
        groups = samples.groupby(level=["iou_type", "row"], sort=False)
        center = values - groups.mean()
        parts = {name: values, "low": groups.quantile(tail) + center, "high": groups.quantile(1 - tail) + center}
        table = pd.DataFrame({part: wide.reindex(values.index).T.unstack() for part, wide in parts.items()})
        return table.rename_axis(["iou_type", "row", "column"])

    def marked_summary(self, iou_type: str) -> pd.DataFrame:
        """Returns the summary of an IoU type as text, without empty columns; AP within noise is marked."""
        table = self.summary.dropna(axis="columns", how="all").loc[iou_type].rename_axis(None)
        return marked(table, {row: self.within_noise(iou_type, row) for row in table.index})

    def interval_tables(self) -> dict[str, pd.DataFrame]:
        """Returns a table for each IoU type by title: AP of the baseline and the differences of the others, as text.

        Each with its interval; of bins, AP and bAP. Empty if nothing was resampled.
        """
        if not self.num_samples:
            return {}
        columns = list(self.samples.columns)
        columns = [name for name in columns[: columns.index("bAP") + 1] if self.summary[name].notna().any()]
        level = f"{100 * self.confidence:g}% intervals over images ({self.num_samples:,} resamples)"
        tables = {}
        for iou_type, rows in self.summary.groupby(level="iou_type", sort=False):
            title = iou_title(str(iou_type))
            parts = {self.baseline: self.intervals.loc[iou_type].loc[self.baseline]}
            if len(rows) > 1:
                title += f" of {self.baseline} and differences from it,"
                differences = self.differences.loc[iou_type]
                parts |= {row: differences.loc[row] for row in differences.index.unique("row")}
            tables[f"{title} with {level}"] = cells({row: part.loc[columns] for row, part in parts.items()})
        return tables

    def text(self) -> str:
        """Returns all tables as the commands print them."""
        lines, intervals = [], list(self.interval_tables().items())
        for i, iou_type in enumerate(self.summary.index.unique("iou_type")):
            lines += ["", iou_title(iou_type), self.marked_summary(iou_type).to_string()]
            if intervals:
                title, table = intervals[i]
                note = f"; {MARK} marks what is within noise" if len(table) > 1 else ""
                lines += ["", f"{title}{note}", table.to_string()]
        return "\n".join(lines[1:])

    def __repr__(self) -> str:
        return f"Figures {UNIT}.\n\n{self.text()}"

    def _repr_html_(self) -> str:
        summaries = {f"{iou_title(t)}, {UNIT}": self.marked_summary(t) for t in self.summary.index.unique("iou_type")}
        tables = summaries | self.interval_tables()
        return "".join(f"<h4>{title}</h4>{table.to_html()}" for title, table in tables.items())
