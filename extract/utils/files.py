"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A name to write to, which takes the place of `path` if the block ends well; makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file in one step, so that readers see the old or the new content."""
    with replacing(path) as partial:
        partial.write_bytes(data)
