"""Runs a command in a process of its own, and measures what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple


class Usage(NamedTuple):
    """Exit code, wall and processor seconds, and the largest resident set in bytes."""

    code: int
    seconds: float
    cpu_seconds: float
    memory: int


def run_python(
    arguments: Sequence[str], stdout: IO | int, stderr: IO | int, variables: Mapping[str, str] | None = None
) -> Usage:
    """Runs this Python with arguments and more environment variables; `stdout`, `stderr` as of `subprocess.Popen`."""
    started = time.perf_counter()
    environment = os.environ | dict(variables or {})
    process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=stderr, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    return Usage(process.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
