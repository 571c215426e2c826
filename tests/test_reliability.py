"""The short version of benchmarks/reliability, whose full run makes the figures of docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("kills", ["--points", "1", "--random", "5"]),
        ("disk", ["--sizes", "1", "--only", "calib.train"]),
        ("damage", ["--trials", "60"]),
        ("inputs", ["--inputs", "800", "--seed", "100000"]),
    ],
)
def test_nothing_is_lost_and_nothing_gets_in(module, options):
    command = [sys.executable, "-m", f"benchmarks.reliability.{module}", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
