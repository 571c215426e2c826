"""Runs commands where nothing more can be written: a full disk, and a folder that is read-only.

    python -m benchmarks.reliability.disk               # 20 sizes of the disk per command
    python -m benchmarks.reliability.disk --sizes 3

A full disk is a limit on the size of a process's files (RLIMIT_FSIZE), since no file system has to be mounted for it:
the system refuses the write that goes beyond it, to Python and to libraries alike. The command must then end with exit
code 1 and a line that says so, the old output must be there, whole, and with space the same command must finish with
the bytes of an undisturbed run. Beside it, TensorBoard's own thread may print a traceback. Commands that write to
an object store are left out: that of the harness, unlike a real one, can hold half a file.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.reliability.children import run_child
from benchmarks.reliability.commands import Command, chosen
from benchmarks.reliability.kills import Outputs, run_undisturbed
from benchmarks.reliability.results import save
from benchmarks.reliability.sources import OUT, SOURCE, content_of, write_sources

NOBODY = 65534


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per command; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=20, help="sizes of the disk per command")
    parser.add_argument("--only", default="", help="the command of this name, or all whose names have it")
    parser.add_argument("--save", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # so that others than root can read the inputs
        write_sources(folder / SOURCE)
        for _, command in chosen(options.only):
            if "object store" in command.name or command.ranks > 1:
                continue
            outputs = run_undisturbed(command, folder)
            situations: list[tuple[str, list[Callable[[], None]]]] = [
                ("full disk", [_limit(size) for size in _sizes(outputs.new / OUT, options.sizes)]),
                ("read-only folder", [_drop_privileges]),
            ]
            for situation, limits in situations:
                faults = [fault for limit in limits for fault in check_limit(command, outputs, limit, folder / "work")]
                print(f"{command.name}, {situation}: {len(limits)} runs, {len(faults)} faults", *faults, sep="\n  ")
                sys.stdout.flush()
                rows.append({"command": command.name, "situation": situation})
                rows[-1] |= {"runs": len(limits), "faults": len(faults)}
                if options.save:
                    save("disk", rows[-1:], ["command", "situation"])
    return int(any(row["faults"] for row in rows))


def check_limit(command: Command, outputs: Outputs, limit: Callable[[], None], work: Path) -> Iterator[str]:
    """Runs a command with a limit and without it; yields what is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(outputs.old, work, symlinks=True)
    read_only = limit is _drop_privileges
    if read_only:
        work.chmod(0o555)
    limited = run_child(lambda: command.run(work), work, prepare=limit)
    work.chmod(0o755)
    old, new = content_of(outputs.old / OUT), content_of(outputs.new / OUT)
    if limited.code == 0:
        if content_of(work / OUT) != new:
            yield "ends with code 0 and other bytes"
        return
    if limited.code != 1 or not _says_why(limited.errors):
        yield f"ends with code {limited.code}: {limited.errors[-1500:]}"
    if command.must_keep_old and content_of(work / OUT) != old:
        yield f"the old output is not there: {limited.errors[-300:]}"
    if read_only:
        return
    again = run_child(lambda: command.run(work), work)
    if again.code or content_of(work / OUT) != new:
        yield f"the same command ends with code {again.code} or other bytes: {again.errors[-1500:]}"
    elif left := sorted(path.name for path in work.iterdir() if path.name not in (OUT, SOURCE)):
        yield f"leaves {', '.join(left)}"


def _says_why(errors: str) -> bool:
    """Returns whether a line says what was wrong: a command's own, or the last one of a function's traceback."""
    lines = errors.rstrip().splitlines() or [""]
    return "Error: " in lines[-1] or any(line.startswith("error: ") for line in lines)


def _sizes(out: Path, count: int) -> list[int]:
    """Returns sizes at which some files fit and others do not."""
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    sizes = sorted({path.stat().st_size for path in files} - {0})
    chosen = sizes if len(sizes) <= count else [sizes[i * len(sizes) // count] for i in range(count)]
    return [0, *(size - 1 for size in chosen if size > 1)]


def _limit(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def _drop_privileges() -> None:
    """Lets permissions count, which do not for root."""
    if os.getuid() == 0:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


if __name__ == "__main__":
    sys.exit(main())
