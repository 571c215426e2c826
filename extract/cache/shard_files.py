"""The files of one RoI array, in a folder or in an object store: read in ranges, replaced as a whole."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# NumPy declares its arrays to be buffers from Python 3.12 on only, hence the ignored types.


class ShardFile(Protocol):
    """A file open for reading."""

    def close(self) -> None:
        """Closes the file."""

    def tail(self, size: int) -> bytes:
        """Returns the last bytes."""

    def prefetch(self, begins: Sequence[int], sizes: Sequence[int], gaps: bool) -> None:
        """Announces the ranges that `read` will be called for, so that they are fetched in the meantime.

        Args:
            begins: first byte of each range.
            sizes: of each range, in bytes.
            gaps: whether there are unwanted bytes between the ranges.
        """

    def read(self, buffers: Sequence[np.ndarray], begin: int, size: int) -> None:
        """Fills flat uint8 arrays in order, `size` bytes in all. Raises ValueError if the file ends before."""


class ShardFiles(Protocol):
    """All files of one array."""

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of every file, by name."""

    def names(self) -> list[str]:
        """Returns the names of all files."""

    def open(self, name: str) -> ShardFile:
        """Opens a file for reading."""

    def replace(self, name: str, parts: Iterator[list[np.ndarray]]) -> None:
        """Writes a file from flat uint8 arrays; readers see the old or the new file, whole."""


class LocalFiles:
    """Files of a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """See `ShardFiles.sizes`."""
        return {entry.name: entry.stat().st_size for entry in os.scandir(self._folder)}

    def names(self) -> list[str]:
        """See `ShardFiles.names`."""
        return os.listdir(self._folder)

    def open(self, name: str) -> LocalFile:
        """See `ShardFiles.open`."""
        return LocalFile(os.open(f"{self._folder}/{name}", os.O_RDONLY))

    def replace(self, name: str, parts: Iterator[list[np.ndarray]]) -> None:
        """See `ShardFiles.replace`."""
        path = f"{self._folder}/{name}"
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        try:
            with open(partial, "wb", buffering=0) as file:
                for buffers in parts:
                    written = os.writev(file.fileno(), buffers)  # type: ignore[arg-type]
                    rest = memoryview(_join(buffers) if written < sum(map(len, buffers)) else b"")[written:]
                    while rest:  # the system may write less than it is given
                        rest = rest[file.write(rest) :]
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)


class LocalFile:
    """A file of a folder. The kernel reads prefetched ranges in the background."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """See `ShardFile.close`."""
        os.close(self._descriptor)

    def tail(self, size: int) -> bytes:
        """See `ShardFile.tail`."""
        return os.pread(self._descriptor, size, max(os.fstat(self._descriptor).st_size - size, 0))

    def prefetch(self, begins: Sequence[int], sizes: Sequence[int], gaps: bool) -> None:
        """See `ShardFile.prefetch`."""
        if gaps:  # without gaps the kernel's own readahead does it
            for begin, size in zip(begins, sizes, strict=True):
                os.posix_fadvise(self._descriptor, begin, size, os.POSIX_FADV_WILLNEED)

    def read(self, buffers: Sequence[np.ndarray], begin: int, size: int) -> None:
        """See `ShardFile.read`."""
        if os.preadv(self._descriptor, buffers, begin) != size:  # type: ignore[arg-type]
            raise ValueError("its end is missing")


class RemoteFiles:
    """Files of an fsspec file system."""

    def __init__(self, system: AbstractFileSystem, folder: str) -> None:
        self._system, self._folder = system, folder

    def sizes(self) -> dict[str, int]:
        """See `ShardFiles.sizes`."""
        entries = self._system.ls(self._folder, detail=True, refresh=True)
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] or 0 for entry in entries}

    def names(self) -> list[str]:
        """See `ShardFiles.names`."""
        return list(self.sizes())

    def open(self, name: str) -> RemoteFile:
        """See `ShardFiles.open`."""
        return RemoteFile(self._system, f"{self._folder}/{name}")

    def replace(self, name: str, parts: Iterator[list[np.ndarray]]) -> None:
        """See `ShardFiles.replace`."""
        self._system.pipe_file(f"{self._folder}/{name}", _join(buffer for buffers in parts for buffer in buffers))


class RemoteFile:
    """A file of an fsspec file system. `prefetch` fetches all ranges at once, because each request takes long."""

    def __init__(self, system: AbstractFileSystem, path: str) -> None:
        self._system, self._path = system, path
        self._fetched: dict[int, bytes] = {}

    def close(self) -> None:
        """See `ShardFile.close`."""

    def tail(self, size: int) -> bytes:
        """See `ShardFile.tail`."""
        return self._system.cat_file(self._path, start=-size)

    def prefetch(self, begins: Sequence[int], sizes: Sequence[int], gaps: bool) -> None:
        """See `ShardFile.prefetch`."""
        ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
        ranges = self._system.cat_ranges([self._path] * len(ends), list(begins), ends, on_error="raise")
        self._fetched = dict(zip(begins, ranges, strict=True))

    def read(self, buffers: Sequence[np.ndarray], begin: int, size: int) -> None:
        """See `ShardFile.read`."""
        data = np.frombuffer(self._fetched.pop(begin), np.uint8)
        if len(data) != size:
            raise ValueError("its end is missing")
        position = 0
        for buffer in buffers:
            buffer[:] = data[position : position + len(buffer)]
            position += len(buffer)


def _join(buffers: Iterable[np.ndarray]) -> bytes:
    return b"".join(buffers)  # type: ignore[arg-type]
