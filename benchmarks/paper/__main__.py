"""The tables of the paper and the ablations of its extended version, measured and beside the paper's figures.

    python -m benchmarks.paper 6                    # on Mini-LVIS
    python -m benchmarks.paper 1 2 3 4 5 6 7 8
    python -m benchmarks.paper heads length lr tail simcal
    python -m benchmarks.paper 6 --lvis PATH        # on LVIS v0.5 or v1; `benchmarks/paper/lvis.py` has what PATH holds

    1 classes per bin, 2 score thresholds, 3 proposal recall, 4 oracle, 5 Cascade Mask R-CNN and HTC, 6 combinations of
    the scores, 7 HTC calibrated, 8 repeat factor sampling, 9 ensembles, 10 the same and multi-scale and flip testing on
    test, 11 a pre-trained start and the semantic branch.

Caches and heads are those of `make demo RECIPE=paper` in `data/DETECTOR`; what is missing is made. Rows go to
`benchmarks/results/paper`, from which `python -m benchmarks.documents` makes docs/results.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.paper import ablations, ensembles, results, scores, statistics
from benchmarks.paper.lvis import lvis
from benchmarks.paper.setups import ROOT, Setup, mini_lvis

TABLES: dict[str, Callable[[Setup], pd.DataFrame]] = {
    "1": statistics.class_table,
    "3": statistics.recall_table,
    **{table: partial(scores.score_table, table=table) for table in scores.TABLES},
    "9": ensembles.ensemble_table,
    "10": ensembles.test_table,
    "heads": ablations.head_table,
    "length": ablations.length_table,
    "lr": ablations.lr_table,
    "tail": ablations.tail_table,
    "simcal": ablations.simcal_table,
}
NAMES = (*map(str, range(1, 12)), "heads", "length", "lr", "tail", "simcal")


def main(arguments: Sequence[str]) -> int:
    """Measures tables and saves them; returns the exit code. Expected errors become one line on stderr."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=NAMES, metavar="TABLE", help=", ".join(NAMES))
    parser.add_argument("--lvis", type=Path, help="folder of LVIS v0.5 or v1, in place of Mini-LVIS")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of Mini-LVIS and its caches")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        setup = lvis(options.lvis) if options.lvis else mini_lvis(options.data)
        for table in options.tables:
            measure(setup, table, arguments)
    except (OSError, ValueError, ImportError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def measure(setup: Setup, table: str, command: Sequence[str]) -> None:
    """Measures one table, saves it and prints it beside the paper's figures."""
    results.save(table, TABLES[table](setup), setup.name, command)
    if table == "1" and setup.name != statistics.LVIS:  # its statistics are committed
        results.save(table, statistics.lvis_class_table(), statistics.LVIS, command)
    print(f"Table {table}\n{results.document_table(table)}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
