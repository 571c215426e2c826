"""The folder of a command's results: written by one process, and replaced as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from extract.utils.files import remove_partials, write_bytes
from extract.utils.folders import (
    can_be_replaced,
    partial_folder,
    put_in_place,
    remove_folder,
    settle,
    unused_partial,
)
from extract.utils.locks import one_writer
from fuse.commands.config import DETECTIONS_FILE
from fuse.commands.manifest import MANIFEST_FILE

METRICS_FILE, PER_CLASS_FILE, REPORT_FILE = "metrics.csv", "per_class.csv", "report.html"
ERRORS_FILE = "errors.csv"
FILES = (MANIFEST_FILE, DETECTIONS_FILE, PER_CLASS_FILE, REPORT_FILE, ERRORS_FILE, METRICS_FILE)
"""What `new_results` replaces, the manifest first."""
BEGUN_FILE = "run.begun.json"
"""The manifest of results that `resumable_results` has begun."""


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Holds the lock of a folder of results for the block.

    Finishes or undoes a replacement that was killed at its end, and removes what a killed process has left.

    Raises InUseError if another process is writing there.
    """
    with one_writer(out):
        path = Path(os.path.realpath(out))
        settle(path, lambda folder: (folder / MANIFEST_FILE).is_file(), MANIFEST_FILE)
        remove_partials(path)
        yield


@contextmanager
def new_results(out: Path) -> Iterator[Path]:
    """Yields an empty folder for new results, which take the place of those in `out` when the block ends without error.

    The block writes the manifest last. At every moment `out` has the old or the new results, whole. A folder that also
    has other files keeps them, and cannot be replaced as a whole: its old results are deleted first, the manifest
    before the others, so that it never stands beside results of two runs.
    """
    path = Path(os.path.realpath(out))
    if not can_be_replaced(path, FILES):
        for name in FILES:
            (path / name).unlink(missing_ok=True)
        yield path
        return
    new = unused_partial(path)
    new.mkdir(parents=True)
    try:
        yield new
        put_in_place(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def resumable_results(out: Path, manifest: bytes, parts: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Yields the folder for results of several parts, with which the same command resumes: `out`.

    With `overwrite` it is a folder beside `out`, which keeps its parts when the block is interrupted, and takes the
    place of `out` when it ends without error. A folder that also has other files keeps them; its results and parts are
    deleted first.

    Args:
        out: of the command, whose lock is held.
        manifest: of the run, which the block writes last.
        parts: names of what is in the folder besides `FILES`.
        overwrite: whether older results are replaced.
    """
    path, names = Path(os.path.realpath(out)), (*FILES, BEGUN_FILE, *parts)
    if not overwrite:
        yield path
        return
    if not can_be_replaced(path, names):
        for name in names:
            _remove(path / name)
        yield path
        return
    new = partial_folder(path)
    begun = new / BEGUN_FILE
    if new.exists() and not (begun.is_file() and begun.read_bytes() == manifest):
        remove_folder(new)
    remove_partials(new)
    write_bytes(begun, manifest)
    yield new
    begun.unlink()
    put_in_place(new, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
