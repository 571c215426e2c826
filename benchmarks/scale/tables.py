"""The Markdown tables of the pipeline at the size of LVIS v1."""

from __future__ import annotations

import pandas as pd

from benchmarks.tables import format_memory, format_time, markdown, provenance_line


def scale_table(results: pd.DataFrame) -> str:
    """Formats what each step took, and what it wrote: a table for each number of classes."""
    return "\n\n".join(_scale_table(classes, rows) for classes, rows in results.groupby("classes"))


def checks_table(results: pd.DataFrame) -> str:
    """Formats what was compared at that size: a table for each number of classes."""
    return "\n\n".join(_checks_table(classes, rows) for classes, rows in results.groupby("classes"))


def _scale_table(classes: int, results: pd.DataFrame) -> str:
    rows = [
        [
            r["step"],
            f"{r['images']:,.0f}",
            format_time(r["seconds"]),
            format_time(r["cpu_seconds"]),
            format_memory(r["memory"]),
            f"{r['files']:,.0f}",
            format_memory(r["bytes"]),
            "" if pd.isna(r["estimated_bytes"]) else _estimate(r["estimated_seconds"], r["estimated_bytes"]),
        ]
        for r in results.to_dict("records")
    ]
    header = ["step", "images", "time", "processor time", "peak memory", "files", "size on disk", "estimated"]
    share = f"{100 * results['share'].iloc[0]:g}% of LVIS v1's images, {classes:,} classes. "
    return markdown(header, rows) + "\n\n" + share + provenance_line(results)


def _checks_table(classes: int, results: pd.DataFrame) -> str:
    rows = [[r["check"], f"{r['value']:,.6g}", f"{r['other']:,.6g}"] for r in results.to_dict("records")]
    return markdown([f"{classes:,} classes", "figure", "compared with"], rows) + "\n\n" + provenance_line(results)


def _estimate(seconds: float, count: float) -> str:
    return f"{format_time(seconds)}, {format_memory(count)}"
