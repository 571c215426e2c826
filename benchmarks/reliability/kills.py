"""Kills commands at single steps of their file-system work, runs them again, and compares the bytes.

    python -m benchmarks.reliability.kills               # every step of every command
    python -m benchmarks.reliability.kills --points 5    # so many steps of each

A step is the opening of a file for writing, a renaming or a deletion. The process gets SIGKILL before the step. Then
the output must be the old one or the new one, whole, if there was an old one; and the same command must finish with the
bytes of a run that nobody interrupts, without leaving anything beside them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import calib.__main__
import calib.train
import extract.__main__
import extract.convert
from extract import open_cache, write_cache
from tests.toy_cache import toy_cache

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}
"""Audit events of Python; the last one comes before the exchange of two folders."""
UNEQUAL = ("metrics.jsonl", "tensorboard")
"""Files of a head that hold times."""
KILLED = -signal.SIGKILL


class Command(NamedTuple):
    """A command that writes `out` in a folder that has `source`, a train cache; with `old`, something is there."""

    name: str
    run: Callable[[Path], object]
    old: Callable[[Path], object] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per command; returns 1 if any output was lost, mixed or could not be finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="steps of each command to kill at, evenly spread; default: all")
    points = parser.parse_args(argv).points
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _in_child(lambda: toy_cache(folder / "source"), folder)
        for command in COMMANDS:
            killed, found = kill(command, folder, points)
            faults += len(found)
            print(f"{command.name}: {killed} kills, {len(found)} faults", *found, sep="\n  ", flush=True)
    return int(faults > 0)


def kill(command: Command, folder: Path, points: int | None) -> tuple[int, list[str]]:
    """Kills a command at its steps; returns the number of kills and what was wrong after them."""
    old, new, work = folder / "old", folder / "new", folder / "work"
    for path in (old, new):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / "source").symlink_to(folder / "source")
        if command.old is not None:
            _in_child(lambda path=path: command.old(path), path)
    steps = _in_child(lambda: command.run(new), new)[1]
    faults, killed = [], 0
    for step in range(1, steps + 1) if points is None else sorted({1 + i * steps // points for i in range(points)}):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(old, work, symlinks=True)
        code, _ = _in_child(lambda: command.run(work), work, step)
        killed += code == KILLED
        content = _content(work / "out")
        if command.old is not None and content not in (_content(old / "out"), _content(new / "out")):
            faults.append(f"step {step}: neither the old output nor the new one")
        code, _ = _in_child(lambda: command.run(work), work)
        if code or _content(work / "out") != _content(new / "out"):
            faults.append(f"step {step}: the same command ends with code {code} or other bytes")
        elif left := sorted(path.name for path in work.iterdir() if path.name not in ("out", "source")):
            faults.append(f"step {step}: leaves {', '.join(left)}")
    return killed, faults


def _in_child(function: Callable[[], object], folder: Path, step: int | None = None) -> tuple[int, int]:
    """Runs a function in a child, which gets SIGKILL before the given step; returns its exit code and its steps."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        count = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal count
            if event in STEPS and _writes(event, args, str(folder)):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if step is not None:
            os.dup2(1, 2)
        sys.addaudithook(hook)
        code = 1
        try:
            code = int(function() == 1)
        finally:
            os.write(writing, str(count).encode())
            os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reading) as pipe:
        return code, int(pipe.read() or 0)


def _writes(event: str, args: tuple, folder: str) -> bool:
    """Returns whether an event changes files in the folder."""
    if event == "ctypes.dlsym":
        return args[1] == "renameat2"
    if folder not in str(args[0]):
        return False
    return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR))


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    relative = {str(path.relative_to(folder)): path for path in files}
    return {name: path.read_bytes() for name, path in relative.items() if not name.startswith(UNEQUAL)}


def _convert(folder: Path, *options: str) -> int:
    arguments = ["convert", str(folder / "source"), str(folder / "out"), "--level", "embedding", "--device", "cpu"]
    return extract.__main__.main([*arguments, *options])


def _train(folder: Path, *options: str) -> int:
    arguments = ["--cache", str(folder / "source"), "--out", str(folder / "out"), "--head-type", "linear"]
    arguments += ["--steps", "4", "--checkpoint-every", "2", "--classes-per-step", "4", "--device", "cpu"]
    return calib.__main__.main([*arguments, *options])


def _write(folder: Path, overwrite: bool) -> None:
    """Writes a cache by the function of notebooks, which never resumes."""
    cache = open_cache(str(folder / "source"))
    images = [cache[i] for i in range(20 if overwrite else 8)]
    options = {"split": "train", "level": "pooled", "stages": cache.stages, "overwrite": overwrite}
    write_cache(str(folder / "out"), images, cache.classes.reset_index(), **options)


COMMANDS = (
    Command("extract convert", _convert),
    Command("extract convert --overwrite", lambda f: _convert(f, "--overwrite"), lambda f: _write(f, False)),
    Command("write_cache(overwrite=True)", lambda f: _write(f, True), lambda f: _write(f, False)),
    Command("calib.train", _train),
    Command("calib.train --overwrite", lambda f: _train(f, "--overwrite"), lambda f: _train(f, "--steps", "3")),
)

if __name__ == "__main__":
    sys.exit(main())
