"""Puts measured tables into the README and docs/performance.md, and keeps them as CSV in `benchmarks/results`.

    python -m benchmarks.readme plain=data/plain/sweep rfs=data/rfs/sweep recall=data/plain/proposals.zarr
    python -m benchmarks.readme speed

A folder is a finished sweep, whose mask AP is shown; a cache is one of val, whose proposal recall is; a .csv file is
shown as it is. `speed` stands for all of `benchmarks/results/speed`: in the README the ratios
that have a bound to reach, in docs/performance.md everything.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from extract import open_cache
from extract.data.annotations import read_annotations
from extract.recall import proposal_recall

ROOT = Path(__file__).parents[1]
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
SPEED = ROOT / "benchmarks" / "results" / "speed"
SPEED_MODULES = (
    "suppression",
    "detection",
    "training",
    "streaming",
    "storage",
    "extraction",
    "evaluation",
    "imports",
)
VAL = ROOT / "data" / "minilvis" / "val.json"
COLUMNS = ["AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP[1000,-)", "AP", "bAP", "APr", "APc", "APf"]


def main(arguments: list[str]) -> None:
    """NAME=SOURCE pairs: the README's block of that name takes the table of the source. `speed` fills its own."""
    for argument in arguments:
        if argument == "speed":
            put_speed()
            continue
        name, source = argument.split("=")
        kind = {".zarr": recall_tables, ".csv": file_tables}.get(Path(source).suffix, sweep_tables)
        whole, shown = kind(source)
        whole.to_csv(ROOT / "benchmarks" / "results" / f"{name}.csv")
        put(README, name, shown)


def put(document: Path, name: str, table: pd.DataFrame) -> None:
    """Replaces the document's block of a name."""
    block = f"<!-- results:{name} -->\n{markdown(table)}\n<!-- /results -->"
    pattern = rf"<!-- results:{name} -->.*?<!-- /results -->"
    text, found = re.subn(pattern, lambda _: block, document.read_text(), flags=re.S)
    if not found:
        raise ValueError(f"{document}: has no block results:{name}")
    document.write_text(text)


def put_speed() -> None:
    """Each module's table in docs/performance.md, and in the README the ratios that have a bound to reach."""
    tables = {name: pd.read_csv(SPEED / f"{name}.csv", dtype=str, keep_default_na=False) for name in SPEED_MODULES}
    for name, table in tables.items():
        put(PERFORMANCE, name, table.set_index("what"))
    every = pd.concat(tables.values())
    short = every[every["reach"].str.startswith(("≥", "≤"))].drop(columns=["ours", "other", "memory"])
    put(README, "speed", short.set_index("what"))


def sweep_tables(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All metrics of a sweep, and its mask AP."""
    metrics = pd.read_csv(Path(folder) / "metrics.csv", index_col=["iou_type", "row"])
    return metrics.round(2), metrics.loc["segm"][COLUMNS]


def recall_tables(cache: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Proposal recall of a val cache of Mini-LVIS, twice the same."""
    table = proposal_recall(open_cache(cache), read_annotations(VAL)).astype({"objects": "int64"})
    return table.round(2), table


def file_tables(file: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of a benchmark, twice the same; its first column names the rows."""
    table = pd.read_csv(file, index_col=0, dtype=str).rename_axis(None)
    return table, table


def markdown(table: pd.DataFrame) -> str:
    """A table with one decimal where numbers are not whole."""
    lines = ["| | " + " | ".join(table.columns) + " |", "|---" + "|--:" * len(table.columns) + "|"]
    cells = table.map(
        lambda value: value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.1f}"
    )
    lines += ["| " + " | ".join((name, *row)) + " |" for name, *row in cells.itertuples()]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
