"""Functions in child processes that are killed at a step of their file-system work, or have limits."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore
from tqdm import tqdm

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}
"""Audit events of Python; the last one comes before the exchange of two folders."""
PIPE_BYTES = 1 << 20
"""Of what a child may write to stderr: a file would be subject to the limits of its process."""
KILLED = (-signal.SIGKILL, -signal.SIGALRM)
"""Exit codes of processes that got no chance to clean up."""
TORCHRUN_PATIENCE = 30
"""Seconds from SIGTERM to SIGKILL for the other processes, as torchrun ends them when one has failed."""
POLL = 0.005
HANG = 600
"""Seconds after which a child that has not ended is killed."""


os.fsync = lambda _: None  # what a killed process has written is not lost, and disks are slow
tqdm.monitor_interval = 0  # its thread may hold a lock when this process forks, which then no thread of the child frees
tqdm.set_lock(threading.RLock())  # tqdm's own is shared by all forks, so that one that is killed may keep it for ever


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


class _Task(NamedTuple):
    """What a fork runs.

    Attributes:
        function: what a command line does.
        folder: whose changes are counted as steps: files opened for writing, renamings and deletions.
        step: the fork gets SIGKILL before this step.
        seconds: the fork is killed after so long.
        prepare: runs first; sets limits, for example.
    """

    function: Callable[[], object]
    folder: Path
    step: int | None = None
    seconds: float | None = None
    prepare: Callable[[], object] | None = None


def run_child(
    function: Callable[[], object],
    folder: Path,
    *,
    step: int | None = None,
    seconds: float | None = None,
    prepare: Callable[[], object] | None = None,
    hang: float = HANG,
) -> Outcome:
    """Runs a function in a fork of this process; its result 1, or an exception, is exit code 1.

    The function is killed after `hang` seconds.
    """
    return _start(_Task(function, folder, step, seconds, prepare)).wait(hang)


def run_ranks(
    function: Callable[[], object],
    folder: Path,
    ranks: int,
    watched: int = 0,
    *,
    step: int | None = None,
    seconds: float | None = None,
) -> Outcome:
    """Runs a function in several forks of this process, with the environment and the store of torchrun.

    When one fails or is killed, the others are ended, as torchrun does. The outcome is that of the process `watched`,
    which is killed; if only others fail, that of the first of these.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment |= {"TORCHELASTIC_RESTART_COUNT": "0"}
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        environment[name] = str(ranks)

    def start(rank: int) -> _Child:
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        kill = (step, seconds) if rank == watched else (None, None)
        return _start(_Task(function, folder, *kill, lambda: os.environ.update(own)))

    children = [start(rank) for rank in range(ranks)]
    running, started, deadline = list(children), time.monotonic(), float("inf")
    while running:
        time.sleep(POLL)
        running = [child for child in running if not child.has_ended()]
        if any(child.status for child in children) and deadline == float("inf"):
            deadline = time.monotonic() + TORCHRUN_PATIENCE
            for child in running:
                os.kill(child.pid, signal.SIGTERM)
        if time.monotonic() > min(deadline, started + HANG):
            for child in running:
                os.kill(child.pid, signal.SIGABRT)
    outcomes = [child.wait() for child in children]
    return next((one for one in (outcomes[watched], *outcomes) if one.code), outcomes[watched])


class _Child:
    """A fork that runs.

    Attributes:
        pid: of the process.
        status: that `waitpid` has returned; None while it runs.
    """

    def __init__(self, pid: int, steps: int, errors: int) -> None:
        """Takes the reading ends of the pipes of the number of steps and of stderr."""
        self.pid, self.status = pid, None
        self._steps, self._errors = steps, errors

    def has_ended(self) -> bool:
        """Returns whether the process has ended; does not wait."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def wait(self, hang: float = HANG) -> Outcome:
        """Returns the outcome once the process has ended, which it must within so many seconds."""
        deadline = time.monotonic() + hang
        while not self.has_ended():
            time.sleep(POLL)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGABRT)
        with os.fdopen(self._steps) as pipe, os.fdopen(self._errors, errors="replace") as lines:
            return Outcome(os.waitstatus_to_exitcode(self.status), int(pipe.read() or 0), lines.read())


def _start(task: _Task) -> _Child:
    """Starts a fork."""
    (reading, writing), (reading_errors, errors) = os.pipe(), os.pipe()
    fcntl.fcntl(errors, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    if not (pid := os.fork()):
        _child(task, writing, errors)
    os.close(writing)
    os.close(errors)
    return _Child(pid, reading, reading_errors)


def _child(task: _Task, writing: int, errors: int) -> None:
    """Runs a task in this fork, and writes the number of steps and stderr to pipes. Never returns."""
    count = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in STEPS and _writes(event, args, str(task.folder)):
            count += 1
            if count == task.step:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if task.prepare is not None:
            task.prepare()
        sys.addaudithook(hook)
        if task.seconds is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(task.seconds, 1e-6))
        code = int(task.function() == 1)
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
