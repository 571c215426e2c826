"""Runs benchmarks of an earlier commit and of this one in turn, and compares every row that both have.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.versus 898aec9 nms storage evaluation
    OMP_NUM_THREADS=1 python -m benchmarks.speed.versus 898aec9 nms --rounds 5

Both commits are checked out in a temporary folder. A row's time is the smallest of all rounds, since whatever else the
machine does only adds to it. Writes `benchmarks/results/versus.csv`; rows of other benchmarks stay.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.provenance import ROOT, provenance, read_results
from benchmarks.speed.measure import KEYS, merge_into

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 3


def main() -> None:
    """Compares and saves; prints the rows from the slowest in relation to before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier one")
    parser.add_argument("benchmarks", nargs="+", help="modules of benchmarks.speed")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        trees = check_out(options.commit, Path(name) / "before"), check_out("HEAD", Path(name) / "now")
        measured = {"before_commit": options.commit} | provenance()
        for benchmark in options.benchmarks:
            rows = compare(trees, benchmark, options.rounds).assign(**measured)
            print(rows[["case", "before", "now", "ratio"]].to_string(index=False), flush=True)
            file = RESULTS / "versus.csv"
            merge_into(file, rows, ["benchmark", *KEYS]).to_csv(file, index=False)


def check_out(version: str, folder: Path) -> Path:
    """Makes a clone of this repository at a commit, with the same data; returns its folder."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", version], check=True)
    (folder / "data").symlink_to(ROOT / "data")
    return folder


def compare(trees: Sequence[Path], benchmark: str, rounds: int) -> pd.DataFrame:
    """Returns the rows that both trees have: `before` and `now` in seconds, and `ratio`, now / before."""
    times: list[list[pd.Series]] = [[], []]
    for i in range(rounds):
        for k in (0, 1) if i % 2 == 0 else (1, 0):
            times[k].append(measure(trees[k], benchmark))
    before, now = (pd.concat(columns, axis=1).min(axis=1) for columns in times)
    rows = pd.DataFrame({"before": before, "now": now}).dropna()
    rows = rows.assign(ratio=(rows["now"] / rows["before"]).round(4)).reset_index()
    rows.insert(0, "benchmark", benchmark)
    return rows.sort_values("ratio", ascending=False)


def measure(tree: Path, benchmark: str) -> pd.Series:
    """Runs a benchmark in a tree; returns the seconds of each case."""
    file = tree / "benchmarks" / "results" / "speed" / f"{benchmark}.csv"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.speed.{benchmark}"]
    subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=sys.stderr, check=True)
    return read_results(file).set_index(KEYS)["time"]


if __name__ == "__main__":
    main()
