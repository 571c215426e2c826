"""`make demo` against the paper's recipe in one process, which is how it ran before hidden features.

    python -m benchmarks.speed.demo

Both run once, one after the other, from an installed environment and drawn images to the table of AP. Times are wall
time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from benchmarks.paper.setups import ROOT
from benchmarks.speed.measure import result, save, seconds, timing

TARGET = 0.6


def main(detector: str = "plain") -> None:
    """Times both and saves the result."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        default = seconds(lambda: demo(detector, run / "default"))
        paper = seconds(lambda: demo(detector, run / "paper", RECIPE="paper", PROCESSES="1"))
    case = f"make demo DETECTOR={detector}"
    baseline = "make demo RECIPE=paper PROCESSES=1"
    save("demo", [result(case, baseline, timing([(default, paper)]), "at_most", TARGET)])


def demo(detector: str, run: Path, **variables: str) -> None:
    """Runs `make demo` into a folder, in this process's environment and without installing anything."""
    installed = [f"--assume-old={Path(sys.prefix) / mark}" for mark in ("demo", "frameworks")]
    variables |= {"VENV": sys.prefix, "DETECTOR": detector, "RUN": str(run)}
    settings = [f"{name}={value}" for name, value in variables.items()]
    subprocess.run(["make", *installed, "demo", *settings], cwd=ROOT, check=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
