"""Markdown tables of benchmark results: numbers formatted for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

BINS = ["AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP[1000,-)", "AP", "bAP"]
FREQUENCIES = ["APr", "APc", "APf"]
PROVENANCE = ["machine", "commit", "date"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a table whose first column is aligned left, the others right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def accuracy_table(metrics: pd.DataFrame, columns: Sequence[str] = (*BINS, *FREQUENCIES), decimals: int = 1) -> str:
    """Formats AP in points of every `row`: by bin of training instances, of all classes, by LVIS's frequency tag.

    Columns without any value, as of bins without ground truth, are left out.
    """
    columns = [name for name in columns if metrics[name].notna().any()]
    values = metrics[columns].map(f"{{:.{decimals}f}}".format)
    return markdown(["row", *columns], ([name, *row] for name, row in zip(metrics["row"], values.values, strict=True)))


def live_table(results: pd.DataFrame) -> str:
    """Formats times of live inference: the framework's own and the calibrated detector's."""
    rows = (
        [
            f"{r['framework']}, {r['head_type']}",
            f"{r['score_threshold']:g}",
            f"{r['baseline_time']:.2f} s",
            f"{r['time']:.2f} s",
            f"{r['relative_time']:.2f}×",
        ]
        for r in results.to_dict("records")
    )
    header = ["framework, head type", "score threshold", "framework alone", "calibrated", "relative time"]
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def speed_table(results: pd.DataFrame) -> str:
    """Formats all columns of a speed benchmark; see `benchmarks.speed.measure`."""
    header = ["case", "baseline", "time", "baseline time", "ratio", "target", "met", "memory", "baseline memory"]
    rows = (
        [
            r["case"],
            r["baseline"],
            format_time(r["time"]),
            format_time(r["baseline_time"]),
            format_ratio(r["ratio"], r["bound"]),
            format_target(r["target"], r["bound"]),
            {True: "yes", False: "not met"}.get(r["met"], ""),
            format_memory(r["memory"]),
            format_memory(r["baseline_memory"]),
        ]
        for r in results.to_dict("records")
    )
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def cost_table(costs: pd.DataFrame) -> str:
    """Formats a whole calibration's hours by machine and gigabytes of its caches, by dataset and recipe."""
    machines = list(dict.fromkeys(costs["hardware"]))
    rows = []
    for (dataset, recipe), table in costs.groupby(["dataset", "recipe"], sort=False):
        stages = table[["extract_train", "extract_val", "train", "fuse"]].set_axis(table["hardware"], axis=0)
        parts = " + ".join(_format_hours(hours) for hours in stages.loc[machines[0]])
        totals = [_format_hours(hours) for hours in stages.sum(axis=1)[machines]]
        sizes = [f"{size:,.0f}" if size >= 10 else f"{size:.1f}" for size in table[["train_gb", "val_gb"]].iloc[0]]
        rows.append([str(dataset), str(recipe), *totals, parts, *sizes])
    header = ["dataset", "recipe", *(f"{machine}, h" for machine in machines)]
    header += [f"{machines[0]}: extract train + val + train + fuse", "train, GB", "val, GB"]
    return markdown(header, rows) + "\n\n" + provenance_line(costs)


def targets_table(results: Mapping[str, pd.DataFrame]) -> str:
    """Formats, by benchmark, how many targets are met and which are not."""
    rows = []
    for name, table in results.items():
        targets = table.dropna(subset="target")
        missed = [
            f"{r['case']}: {format_ratio(r['ratio'], r['bound'])}, target {format_target(r['target'], r['bound'])}"
            for r in targets[targets["met"] == False].to_dict("records")  # noqa: E712  objects, with NaN among them
        ]
        rows.append([name, f"{len(targets) - len(missed)} of {len(targets)}", "<br>".join(missed)])
    return markdown(["benchmark", "met", "not met"], rows)


def versus_table(results: pd.DataFrame, allowed: float = 1.03) -> str:
    """Formats, by benchmark, the times now relative to those of an earlier commit, and the rows above `allowed`."""
    rows = []
    for name, table in results.groupby("benchmark", sort=False):
        slower = table[table["ratio"] > allowed].sort_values("ratio", ascending=False)
        listed = [f"{r['case']}: {r['ratio']:.3g}×" for r in slower.to_dict("records")]
        rows.append([str(name), str(len(table)), f"{table['ratio'].median():.3g}×", "<br>".join(listed)])
    before = ", ".join(results["before_commit"].unique())
    header = ["benchmark", "rows", "median", f"above {allowed:g}×"]
    return markdown(header, rows) + f"\n\nTimes relative to those of commit {before}. " + provenance_line(results)


def provenance_line(results: pd.DataFrame) -> str:
    """Formats on which machines, from which commits and when the results were measured."""
    measured = results[PROVENANCE].drop_duplicates().itertuples(index=False)
    return "Measured on " + "; ".join(f"{machine}, commit {commit}, {date}" for machine, commit, date in measured) + "."


def format_time(seconds: float) -> str:
    """Formats a time below a second in milliseconds with three digits, a longer one in seconds; "" if not measured."""
    if pd.isna(seconds):
        return ""
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds:,.1f} s"


def format_ratio(ratio: float, bound: object) -> str:
    """Formats a speed-up or, with an upper bound, the time or the size relative to the baseline's."""
    number = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
    if bound == "size_at_most":
        return f"{number} of its size"
    return f"{number}× its time" if bound in ("at_most", "seconds_at_most") else f"{number}× as fast"


def format_target(target: float, bound: object) -> str:
    """Formats a bound of the ratio or of the time; empty if there is none."""
    formats = {"at_least": "≥ {:,g}×", "at_most": "≤ {:,g}×", "seconds_at_most": "≤ {:,g} s", "size_at_most": "≤ {:,g}"}
    return formats[bound].format(target) if isinstance(bound, str) else ""


def _format_hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2f}"


def format_memory(count: float) -> str:
    """Formats bytes as megabytes; empty if not measured."""
    return "" if pd.isna(count) else f"{count / 1e6:,.0f} MB"
