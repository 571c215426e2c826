"""Functions in child processes that are killed at a step of their file-system work, or have limits."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}
"""Audit events of Python; the last one comes before the exchange of two folders."""
PIPE_BYTES = 1 << 20
"""Of what a child may write to stderr: a file would be subject to the limits of its process."""
KILLED = (-signal.SIGKILL, -signal.SIGALRM)
"""Exit codes of processes that got no chance to clean up."""


os.fsync = lambda _: None  # what a killed process has written is not lost, and disks are slow


class Outcome(NamedTuple):
    """How a child ended.

    Attributes:
        code: exit code; negative for the number of the signal that killed it.
        steps: steps of file-system work in the folder that was watched.
        errors: what it wrote to stderr.
    """

    code: int
    steps: int
    errors: str


def run_child(
    function: Callable[[], object],
    folder: Path,
    *,
    step: int | None = None,
    seconds: float | None = None,
    prepare: Callable[[], object] | None = None,
) -> Outcome:
    """Runs a function in a fork of this process; its result 1, or an exception, is exit code 1.

    Args:
        function: what a command line does.
        folder: whose changes are counted as steps: files opened for writing, renamings and deletions.
        step: the child gets SIGKILL before this step.
        seconds: the child is killed after so long.
        prepare: runs first; sets limits, for example.
    """
    (reading, writing), (reading_errors, errors) = os.pipe(), os.pipe()
    fcntl.fcntl(errors, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    if not (pid := os.fork()):
        _child(function, str(folder), step, seconds, prepare, writing, errors)
    os.close(writing)
    os.close(errors)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reading) as pipe, os.fdopen(reading_errors, errors="replace") as lines:
        return Outcome(code, int(pipe.read() or 0), lines.read())


def _child(
    function: Callable[[], object],
    folder: str,
    step: int | None,
    seconds: float | None,
    prepare: Callable[[], object] | None,
    writing: int,
    errors: int,
) -> None:
    """Never returns."""
    count = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in STEPS and _writes(event, args, folder):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if prepare is not None:
            prepare()
        sys.addaudithook(hook)
        if seconds is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        code = int(function() == 1)
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(writing, str(count).encode())
        os._exit(code)


def limit_memory(more: int) -> None:
    """Lets this process take so many more bytes of address space than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def _writes(event: str, args: tuple, folder: str) -> bool:
    """Returns whether an event changes files in the folder."""
    if event == "ctypes.dlsym":
        return args[1] == "renameat2"
    if folder not in str(args[0]):
        return False
    return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR))
