"""Atomic and durable writing of files."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file or a folder that is being written."""
_LEFTOVER = re.compile(rf"(.+)\.[0-9a-f]{{32}}{re.escape(PARTIAL)}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` if the block raises no error; creates the folder.

    Every call has a path of its own, so that two writers never see each other's half file. When the block is left, the
    file is on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces a file atomically: readers see the old or the new content."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def partial_path(path: Path) -> Path:
    """Returns a new path beside `path` for what will take its place."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def flush(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the names in a folder, are on the disk; not all systems can flush folders."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if not os.path.isdir(path):
                raise
        finally:
            os.close(descriptor)


def flush_tree(folder: str | os.PathLike[str], skip: Collection[str] = ()) -> None:
    """Waits until all files in a folder are on the disk, but for those in its folders `skip`."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if parent != str(folder) or name not in skip]
        for name in files:
            flush(os.path.join(parent, name))
        flush(parent)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_partial(name: str) -> bool:
    """Returns whether a file of this name is one of `replacing`, or of Zarr, that a kill has left."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_partials(folder: str | os.PathLike[str], *, below: bool = False, of: str = "") -> None:
    """Deletes the files that killed writers have left in a folder, and `below`; nobody else may be writing there.

    With `of`, only those that were to become the file of this name.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = folders if below else []
        for name in files:
            left = _LEFTOVER.fullmatch(name)
            if left and of in ("", left[1]):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, name))
