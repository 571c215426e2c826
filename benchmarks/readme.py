"""Puts measured tables into the README, and keeps them as CSV in `benchmarks/results`.

    python -m benchmarks.readme plain=data/plain/sweep rfs=data/rfs/sweep recall=data/plain/proposals.zarr

A folder is a finished sweep, whose mask AP is shown; a cache is one of val, whose proposal recall is; a .csv file is
shown as it is.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from extract import open_cache
from extract.annotations import read_annotations
from extract.recall import proposal_recall

ROOT = Path(__file__).parents[1]
VAL = ROOT / "data" / "minilvis" / "val.json"
COLUMNS = ["AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP[1000,-)", "AP", "bAP", "APr", "APc", "APf"]


def main(arguments: list[str]) -> None:
    """NAME=SOURCE pairs: the README's block of that name takes the table of the source."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, source in (argument.split("=") for argument in arguments):
        kind = {".zarr": recall_tables, ".csv": file_tables}.get(Path(source).suffix, sweep_tables)
        whole, shown = kind(source)
        whole.to_csv(ROOT / "benchmarks" / "results" / f"{name}.csv")
        block = f"<!-- results:{name} -->\n{markdown(shown)}\n<!-- /results -->"
        text, found = re.subn(rf"<!-- results:{name} -->.*?<!-- /results -->", lambda _, b=block: b, text, flags=re.S)
        if not found:
            raise ValueError(f"{readme}: has no block results:{name}")
    readme.write_text(text)


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
