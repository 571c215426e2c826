"""Gives mutated files to everything that reads files: one line that names the file, or a result, and nothing else.

    python -m benchmarks.reliability.inputs               # 10,000 inputs
    python -m benchmarks.reliability.inputs --inputs 300
    python -m benchmarks.reliability.inputs --reader results --seed 17 --inputs 1   # one input again

Input i of a reader is made of the generator of seed i. Faults are exceptions that the command lines would print as a
traceback, messages that do not name the file, more than 10 s of processor time, more than 2 GB, and the death of the
process.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.reliability.children import limit_memory
from benchmarks.reliability.readers import READERS, Reader
from benchmarks.reliability.results import save

SECONDS, MEMORY = 10, 2 << 30
"""Of processor time, and bytes beyond those before the first input, that an input may take."""
WAIT = 60
"""Seconds after which a process that does nothing hangs."""
MAX_MESSAGE = 1000
EXPECTED = (ValueError, OSError, ImportError)
"""What command lines print as one line."""
VERDICTS = ACCEPTED, REFUSED, TRACEBACK, UNCLEAR, HANG, OVER_MEMORY, CRASH = (
    "accepted",
    "refused",
    "tracebacks",
    "unclear",
    "hangs",
    "over_memory",
    "crashes",
)
FAULTS = VERDICTS[2:]


class Outcome(NamedTuple):
    """What a reader made of an input."""

    seed: int
    verdict: str
    seconds: float
    detail: str


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per reader and each fault; returns 1 if there was one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="over all readers")
    parser.add_argument("--reader", choices=[reader.name for reader in READERS], help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="of each reader's first input")
    parser.add_argument("--save", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args(argv)
    chosen = [reader for reader in READERS if options.reader in (None, reader.name)]
    total = sum(reader.share for reader in chosen)
    rows: list[dict[str, object]] = []
    for reader in chosen:
        seeds = range(options.seed, options.seed + max(round(options.inputs * reader.share / total), 1))
        with tempfile.TemporaryDirectory() as name:
            outcomes = list(read_all(reader, Path(name), seeds))
        counts = Counter(outcome.verdict for outcome in outcomes)
        slowest = max(outcome.seconds for outcome in outcomes)
        print(f"{reader.name}: {dict(counts)}, slowest {slowest:.2f} s", flush=True)
        for outcome in outcomes:
            if outcome.verdict in FAULTS:
                print(f"  seed {outcome.seed}: {outcome.verdict}: {outcome.detail}", flush=True)
        rows.append({"reader": reader.name, "inputs": len(outcomes)})
        rows[-1] |= {verdict: counts[verdict] for verdict in VERDICTS}
    if options.save:
        save("inputs", rows, ["reader"])
    return int(any(row[fault] for row in rows for fault in FAULTS))


def read_all(reader: Reader, folder: Path, seeds: range) -> Iterator[Outcome]:
    """Reads the inputs in a child process, which is replaced when it hangs or dies."""
    reader.prepare(folder)
    following = seeds.start
    while following < seeds.stop:
        for outcome in _in_child(reader, folder, range(following, seeds.stop)):
            following = outcome.seed + 1
            yield outcome


def _in_child(reader: Reader, folder: Path, seeds: range) -> Iterator[Outcome]:
    """Yields outcomes until the child has read all inputs, or one of them has ended it."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.close(reading)
        _read_inputs(reader, folder, seeds, writing)
    os.close(writing)
    following, buffer = seeds.start, b""
    while following < seeds.stop:
        if not select.select([reading], [], [], WAIT)[0]:
            os.kill(pid, signal.SIGKILL)
            yield Outcome(following, HANG, WAIT, "")
            break
        if not (content := os.read(reading, 1 << 16)):
            yield Outcome(following, CRASH, 0, f"wait status {os.waitpid(pid, os.WNOHANG)[1]}")
            break
        *lines, buffer = (buffer + content).split(b"\n")
        for line in lines:
            yield (outcome := Outcome(*json.loads(line)))
            following = outcome.seed + 1
    os.close(reading)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _read_inputs(reader: Reader, folder: Path, seeds: range, writing: int) -> None:
    """Reads inputs and writes the outcomes as lines of JSON; never returns."""
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        limit_memory(MEMORY)
        for seed in seeds:
            started = time.process_time()
            verdict, detail = _read_input(reader, folder, seed)
            seconds = time.process_time() - started
            outcome = Outcome(seed, verdict if seconds < SECONDS else HANG, seconds, detail)
            os.write(writing, json.dumps(outcome).encode() + b"\n")
    finally:
        os._exit(0)


def _read_input(reader: Reader, folder: Path, seed: int) -> tuple[str, str]:
    rng = np.random.default_rng(seed)
    try:
        reader.read(folder, rng)
    except EXPECTED as error:
        message = " ".join(str(error).split())
        named = str(folder) in message and len(message) < MAX_MESSAGE
        return (REFUSED, "") if named else (UNCLEAR, f"{type(error).__name__}: {message[:300]}")
    except MemoryError:
        return OVER_MEMORY, traceback.format_exc()[-1500:]
    except Exception:
        return TRACEBACK, traceback.format_exc()[-1500:]
    return ACCEPTED, ""


if __name__ == "__main__":
    sys.exit(main())
