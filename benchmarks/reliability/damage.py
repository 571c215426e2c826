"""Damages caches, heads and exports, and reads them: what changes data must end in an error that names the output.

    python -m benchmarks.reliability.damage               # 1,000 changed bytes; 200 truncations, deletions and swaps
    python -m benchmarks.reliability.damage --trials 40   # so many changed bytes, and a fifth of the others

Every trial changes a file of a whole output, reads all of the output, and restores the file. A trial is found if
reading raises an error of one line that names the output, and harmless if what is read is the same. Anything else is a
fault: undetected, or, with another error, unclear.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.reliability.results import save
from benchmarks.reliability.targets import TARGETS, Target

MAX_MESSAGE = 600
VERDICTS = FOUND, SAME, UNDETECTED, UNCLEAR = "found", "harmless", "undetected", "unclear"


class Change(NamedTuple):
    """What happens to an output: the new content of files, None for a file that is deleted."""

    files: Mapping[Path, bytes | None]
    description: str


class Trial(NamedTuple):
    """What came of a change; `fault` says what is wrong, if anything."""

    kind: str
    verdict: str
    fault: str = ""


def change_byte(files: Sequence[Path], other: Callable[[Path], Path], rng: np.random.Generator) -> Change:
    """Changes a bit in half of the trials, else a whole byte."""
    file = _pick([file for file in files if file.stat().st_size], rng)
    content = bytearray(file.read_bytes())
    position = int(rng.integers(len(content)))
    content[position] ^= 1 << int(rng.integers(8)) if rng.integers(2) else int(rng.integers(1, 256))
    return Change({file: bytes(content)}, f"{file.name}: byte {position}")


def truncate(files: Sequence[Path], other: Callable[[Path], Path], rng: np.random.Generator) -> Change:
    """Cuts a file anywhere."""
    file = _pick([file for file in files if file.stat().st_size], rng)
    length = int(rng.integers(file.stat().st_size))
    return Change({file: file.read_bytes()[:length]}, f"{file.name}: cut to {length} bytes")


def delete(files: Sequence[Path], other: Callable[[Path], Path], rng: np.random.Generator) -> Change:
    """Deletes a file."""
    file = _pick(files, rng)
    return Change({file: None}, f"{file.name}: deleted")


def swap(files: Sequence[Path], other: Callable[[Path], Path], rng: np.random.Generator) -> Change:
    """Takes a file from another output of the same kind, or exchanges two files of this one."""
    foreign = [file for file in files if other(file).is_file()]
    if foreign and rng.integers(2):
        file = _pick(foreign, rng)
        return Change({file: other(file).read_bytes()}, f"{file.name}: of another output")
    one, two = (files[i] for i in rng.choice(len(files), 2, replace=False).tolist())
    return Change({one: two.read_bytes(), two: one.read_bytes()}, f"{one.name} and {two.name} of {two.parent.name}")


KINDS = {
    "byte changed": (change_byte, 1.0),
    "truncated": (truncate, 0.2),
    "deleted": (delete, 0.2),
    "swapped": (swap, 0.2),
}
"""Kinds of changes → the function, and their trials relative to the changed bytes'."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per output and kind of change; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="changed bytes, over all outputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args(argv)
    rows: list[dict[str, object]] = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            trials = list(damage(target, Path(folder), options.trials, options.seed))
        for kind in dict.fromkeys(trial.kind for trial in trials):
            counts = Counter(trial.verdict for trial in trials if trial.kind == kind)
            faults = [trial.fault for trial in trials if trial.kind == kind and trial.fault]
            print(f"{target.name}, {kind}: {dict(counts)}", *faults, sep="\n  ", flush=True)
            rows.append({"output": target.name, "change": kind, "trials": counts.total()})
            rows[-1] |= {verdict: counts[verdict] for verdict in VERDICTS}
    if options.save:
        save("damage", rows, ["output", "change"])
    return int(any(row[UNDETECTED] or row[UNCLEAR] for row in rows))


def damage(target: Target, folder: Path, trials: int, seed: int) -> Iterator[Trial]:
    """Writes an output, and another one for swaps; changes it again and again."""
    one, two = folder / "one", folder / "two"
    target.write(one, 0), target.write(two, 1)
    files = sorted(path for path in one.rglob("*") if path.is_file())
    expected, rng = _digest(target, one), np.random.default_rng(seed)
    for kind, (change, share) in KINDS.items():
        if change is swap and len(files) == 1:  # which would be the whole other output
            continue
        for _ in range(max(round(trials * share * target.share), 1)):
            changed = change(files, lambda file: two / file.relative_to(one), rng)
            before = {file: file.read_bytes() for file in changed.files}
            for file, content in changed.files.items():
                file.unlink() if content is None else file.write_bytes(content)
            yield _judge(kind, changed.description, target, one, expected)
            for file, content in before.items():
                file.write_bytes(content)
    if _digest(target, one) != expected:
        raise RuntimeError(f"{target.name}: is not whole again")


def _judge(kind: str, change: str, target: Target, folder: Path, expected: str) -> Trial:
    try:
        found = _digest(target, folder)
    except Exception as error:
        message = str(error)
        clear = isinstance(error, ValueError | OSError) and str(folder) in message and len(message) < MAX_MESSAGE
        return Trial(kind, FOUND) if clear else Trial(kind, UNCLEAR, f"{change}: {type(error).__name__}: {message}")
    return Trial(kind, SAME) if found == expected else Trial(kind, UNDETECTED, change)


def _digest(target: Target, folder: Path) -> str:
    """Returns a sha256 of all that reading an output gives."""
    digest = hashlib.sha256()
    for part in target.read(folder):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _pick(files: Sequence[Path], rng: np.random.Generator) -> Path:
    """Returns a file, each with the same probability in half of the trials, else in proportion to its size."""
    sizes = np.array([file.stat().st_size for file in files], float)
    weights = np.ones(len(files)) if rng.integers(2) or not sizes.any() else sizes
    return files[int(rng.choice(len(files), p=weights / weights.sum()))]


if __name__ == "__main__":
    sys.exit(main())
