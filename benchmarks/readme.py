"""Puts the tables of finished sweeps into the README, and keeps them as CSV in `benchmarks/results`.

python -m benchmarks.readme plain=data/plain/sweep rfs=data/rfs/sweep
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
COLUMNS = ("AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP[1000,-)", "AP", "bAP", "APr", "APc", "APf")


def main(arguments: list[str]) -> None:
    """NAME=FOLDER pairs: the README's block of that name takes the mask AP of the sweep in that folder."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, folder in (argument.split("=") for argument in arguments):
        metrics = pd.read_csv(Path(folder) / "metrics.csv", index_col=["iou_type", "row"])
        results = ROOT / "benchmarks" / "results"
        results.mkdir(exist_ok=True)
        metrics.round(2).to_csv(results / f"{name}.csv")
        block = f"<!-- results:{name} -->\n{markdown(metrics.loc['segm'][list(COLUMNS)])}\n<!-- /results -->"
        text, found = re.subn(rf"<!-- results:{name} -->.*?<!-- /results -->", lambda _, b=block: b, text, flags=re.S)
        if not found:
            raise ValueError(f"{readme}: has no block results:{name}")
    readme.write_text(text)


def markdown(table: pd.DataFrame) -> str:
    """A table of points with one decimal."""
    lines = ["| | " + " | ".join(table.columns) + " |", "|---" + "|--:" * len(table.columns) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |" for name, *row in table.itertuples()]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
