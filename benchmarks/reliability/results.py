"""The CSV files of the harness, `benchmarks/results/reliability`, and the table of one in a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.provenance import provenance, read_results
from benchmarks.tables import PROVENANCE, markdown, provenance_line

RESULTS = Path(__file__).parents[1] / "results" / "reliability"


def save(name: str, rows: Sequence[Mapping[str, object]], keys: Sequence[str], folder: Path = RESULTS) -> None:
    """Writes a CSV file, with machine, commit and date; rows replace those that have the same `keys`."""
    folder.mkdir(parents=True, exist_ok=True)
    file, table = folder / f"{name}.csv", pd.DataFrame(rows).assign(**provenance())
    if file.exists():
        table = pd.concat([read_results(file), table]).drop_duplicates(list(keys), keep="last")
    table.to_csv(file, index=False)


def reliability_table(results: pd.DataFrame, total: bool = True) -> str:
    """Formats a file; with `total`, a last row has sums."""
    values = results.drop(columns=PROVENANCE)
    numbers = values.select_dtypes("number").columns
    rows = [[_format(value) for value in row] for row in values.itertuples(index=False)]
    if total:
        sums = ["all", *("" for _ in values.columns[1:])]
        for column in numbers:
            sums[values.columns.get_loc(column)] = _format(values[column].sum())
        rows.append(sums)
    return markdown([name.replace("_", " ") for name in values], rows) + "\n\n" + provenance_line(results)


def _format(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
