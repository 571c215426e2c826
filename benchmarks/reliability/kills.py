"""Kills commands at single steps of their file-system work, and at random times; runs them again; compares the bytes.

    python -m benchmarks.reliability.kills                            # every step of every command, and 200 times
    python -m benchmarks.reliability.kills --points 5 --random 10     # so many steps of each, and so many times

A step is the opening of a file for writing, a renaming or a deletion. The process gets SIGKILL before the step. Then
the output must be the old one or the new one, whole, if there was an old one; and the same command must finish with the
bytes of a run that nobody interrupts, without leaving anything beside them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.reliability.children import KILLED, Outcome, run_child
from benchmarks.reliability.commands import COMMANDS, Command, chosen
from benchmarks.reliability.results import save
from benchmarks.reliability.sources import OUT, SOURCE, content_of, write_sources

FINISHED = ("exists already", "is there already", "exists; give another folder", "use --overwrite")
"""What commands that do not resume say of an output that is finished."""


class Kill(NamedTuple):
    """When a process is killed: before a step, or after so many seconds."""

    step: int | None = None
    seconds: float | None = None


class Outputs(NamedTuple):
    """Of a command: folders with the output that is there when it begins, and with that of an undisturbed run.

    Attributes:
        old, new: the folders.
        steps: of the undisturbed run.
        seconds: that it took.
    """

    old: Path
    new: Path
    steps: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per command; returns 1 if any output was lost, mixed or could not be finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="steps of each command to kill at, evenly spread; default: all")
    parser.add_argument("--random", type=int, default=200, help="kills at random times, over all commands")
    parser.add_argument("--only", default="", help="the command of this name, or all whose names have it")
    parser.add_argument("--save", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder / SOURCE)
        for i, command in chosen(options.only):
            outputs = run_undisturbed(command, folder)
            at_random = len(range(i, options.random, len(COMMANDS)))
            times = np.random.default_rng(i).uniform(0, outputs.seconds, at_random)
            kills = [Kill(step) for step in _points(outputs.steps, options.points)]
            kills += [Kill(seconds=time) for time in times.tolist()]
            faults = [fault for one in kills for fault in check_kill(command, outputs, one, folder / "work")]
            print(f"{command.name}: {len(kills)} kills, {len(faults)} faults", *faults, sep="\n  ", flush=True)
            row = {"command": command.name, "steps": outputs.steps, "kills_at_steps": len(kills) - at_random}
            rows.append({**row, "kills_at_random_times": at_random, "faults": len(faults)})
            if options.save:
                save("kills", rows[-1:], ["command"])
    return int(any(row["faults"] for row in rows))


def run_undisturbed(command: Command, folder: Path) -> Outputs:
    """Makes the old output and the new one of a command in a folder that has `SOURCE`."""
    old, new = folder / "old", folder / "new"
    for path in (old, new):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / SOURCE).symlink_to(folder / SOURCE)
        if command.old is not None:
            _require_success(run_child(lambda path=path: command.old(path), path), command)
    started = time.perf_counter()
    outcome = command.start(new)
    _require_success(outcome, command)
    return Outputs(old, new, outcome.steps, time.perf_counter() - started)


def check_kill(command: Command, outputs: Outputs, kill: Kill, work: Path) -> Iterator[str]:
    """Kills a command, runs it again, and yields what is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(outputs.old, work, symlinks=True)
    when = f"step {kill.step}" if kill.step else f"{kill.seconds:.3f} s"
    killed = command.start(work, step=kill.step, seconds=kill.seconds)
    if killed.code not in (0, *KILLED):  # 0: threads took fewer steps this time
        yield f"{when}: ends with code {killed.code}: {killed.errors}"
    content, new = content_of(work / OUT), content_of(outputs.new / OUT)
    if command.must_keep_old and content not in (content_of(outputs.old / OUT), new):
        yield f"{when}: neither the old output nor the new one"
    again = command.start(work)
    finished = any(text in again.errors for text in FINISHED)
    found = content_of(work / OUT)
    if (again.code and not finished) or found != new:
        names = sorted(name for name in new.keys() | found.keys() if new.get(name) != found.get(name))
        yield f"{when}: the same command ends with code {again.code}, and other bytes of {names}: {again.errors}"
    elif left := sorted(path.name for path in work.iterdir() if path.name not in (OUT, SOURCE)):
        yield f"{when}: leaves {', '.join(left)}"


def _points(steps: int, points: int | None) -> list[int]:
    """Returns the steps to kill at: all, or so many."""
    if points is None or points >= steps:
        return list(range(1, steps + 1))
    return [1 + i * steps // points for i in range(points)]


def _require_success(outcome: Outcome, command: Command) -> None:
    if outcome.code:
        raise RuntimeError(f"{command.name} fails undisturbed: {outcome.errors}")


if __name__ == "__main__":
    sys.exit(main())
