"""Where, from what and when a figure was measured."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
MEASURED = ("benchmarks/results", "docs", "README.md")
"""What benchmarks write themselves: a change here leaves the commit clean."""


def provenance() -> dict[str, str]:
    """Returns the columns `machine`, `commit` and `date` of a result."""
    return {"machine": machine(), "commit": commit(), "date": datetime.now(UTC).date().isoformat()}


def machine() -> str:
    """Returns the number of CPUs of this process and, if there is one, the GPU."""
    parts = [f"{len(os.sched_getaffinity(0))} CPUs"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def commit() -> str:
    """Returns the commit's short hash, with "-dirty" if tracked files but `MEASURED` differ, "unknown" without git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in MEASURED))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changes else head


def read_results(file: Path, **text: type[str]) -> pd.DataFrame:
    """Reads a CSV file of results; `commit`, and columns named as `text=str`, stay text: 142e604 is a number too."""
    return pd.read_csv(file, dtype={"commit": str, "before_commit": str, **text})


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
