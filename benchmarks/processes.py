"""Runs a command in a process of its own, and measures what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

_LAUNCHER = """
import os, sys, time
os.set_inheritable(int(sys.argv[1]), False)
started = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
seconds = time.perf_counter() - started
values = os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss
os.write(int(sys.argv[1]), " ".join(map(str, values)).encode())
"""
"""A small process between this one and the measured one: on Linux a process begins with the ru_maxrss of its parent."""


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
    environment = os.environ | dict(variables or {})
    reading, writing = os.pipe()
    command = [sys.executable, "-IS", "-c", _LAUNCHER, str(writing), sys.executable, *arguments]
    with os.fdopen(reading) as results:
        try:
            subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, pass_fds=(writing,), check=True)
        finally:
            os.close(writing)
        code, seconds, cpu_seconds, kilobytes = results.read().split()
    return Usage(int(code), float(seconds), float(cpu_seconds), int(kilobytes) * 1024)
