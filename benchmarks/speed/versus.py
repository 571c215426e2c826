"""Runs benchmarks of an earlier commit and of this one in turns, and compares every row that both have.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.versus 898aec9 nms storage evaluation
    OMP_NUM_THREADS=1 python -m benchmarks.speed.versus 898aec9 "storage --case reading_hidden" --rounds 5

Both commits are checked out in a temporary folder. Each has a process, and one waits while the other times a call, so
that what else the machine does is the same for both (`benchmarks.speed.turns`). A row's time is the smallest of all
rounds. Writes `benchmarks/results/versus.csv`; rows of other benchmarks stay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

import pandas as pd

from benchmarks.provenance import ROOT, provenance, read_results
from benchmarks.speed.measure import KEYS, merge_into

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 2


def main() -> None:
    """Compares and saves; prints the rows from the slowest in relation to before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier one")
    parser.add_argument("benchmarks", nargs="+", help="modules of benchmarks.speed, with arguments")
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
    shutil.copy(Path(__file__).with_name("turns.py"), folder / "benchmarks" / "speed")
    return folder


def compare(trees: Sequence[Path], benchmark: str, rounds: int) -> pd.DataFrame:
    """Returns the rows that both trees have: `before` and `now` in seconds, and `ratio`, now / before."""
    times = [measure(trees if i % 2 == 0 else trees[::-1], benchmark) for i in range(rounds)]
    before, now = (pd.concat([one[tree] for one in times], axis=1).min(axis=1) for tree in trees)
    rows = pd.DataFrame({"before": before, "now": now}).dropna()
    rows = rows.assign(ratio=(rows["now"] / rows["before"]).round(4)).reset_index()
    rows.insert(0, "benchmark", benchmark.split()[0])
    return rows.sort_values("ratio", ascending=False)


def measure(trees: Sequence[Path], benchmark: str) -> dict[Path, pd.Series]:
    """Runs a benchmark in all trees, in turns; returns the seconds of each case, by tree."""
    folders = {tree: tree / "benchmarks" / "results" / "speed" for tree in trees}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    take_turns([start(tree, benchmark) for tree in trees])
    # A benchmark may add rows to the file of another.
    rows = {tree: pd.concat(map(read_results, sorted(folder.glob("*.csv")))) for tree, folder in folders.items()}
    return {tree: table.set_index(KEYS)["time"] for tree, table in rows.items()}


def start(tree: Path, benchmark: str) -> subprocess.Popen[str]:
    """Starts a benchmark in a tree, which then waits for its first turn."""
    command = [sys.executable, "-m", "benchmarks.speed.turns", *benchmark.split()]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1)


def take_turns(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Lets one process after the other go on until its next turn, to the end of all."""
    waiting = deque(process for process in processes if is_waiting(process))
    while waiting:
        process = waiting.popleft()
        print(file=process.stdin)
        if is_waiting(process):
            waiting.append(process)


def is_waiting(process: subprocess.Popen[str]) -> bool:
    """Returns whether a process has come to its next turn; False if it has ended, CalledProcessError if it failed."""
    if cast(TextIO, process.stdout).readline():
        return True
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return False


if __name__ == "__main__":
    main()
