"""The files of one RoI array, in a folder or in an object store: read in ranges, replaced whole."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class ShardFile(Protocol):
    """A file that is read."""

    def tail(self, size: int) -> bytes:
        """The last bytes."""

    def expect(self, begins: Sequence[int], sizes: Sequence[int], gaps: bool) -> None:
        """Says what will be read, and whether there are gaps between."""

    def read(self, buffers: Sequence[np.ndarray], begin: int, size: int) -> None:
        """Fills flat arrays of bytes, `size` in all, one after the other. Raises ValueError if the file ends before."""


class LocalFiles:
    """Files of a folder."""

    def __init__(self, folder: str):
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file."""
        return {entry.name: entry.stat().st_size for entry in os.scandir(self._folder)}

    def names(self) -> list[str]:
        return os.listdir(self._folder)

    @contextmanager
    def open(self, name: str) -> Iterator[ShardFile]:
        descriptor = os.open(f"{self._folder}/{name}", os.O_RDONLY)
        try:
            yield _LocalFile(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, name: str, parts: Iterator[list[np.ndarray]]) -> None:
        """Writes flat arrays of bytes to a file that takes the place of another only when it is whole."""
        path = f"{self._folder}/{name}"
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        try:
            with open(partial, "wb", buffering=0) as file:
                for buffers in parts:
                    done = os.writev(file.fileno(), buffers)
                    rest = memoryview(b"".join(buffers) if done < sum(map(len, buffers)) else b"")[done:]
                    while rest:  # the system may take less than it is given
                        rest = rest[file.write(rest) :]
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)


class _LocalFile:
    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def tail(self, size: int) -> bytes:
        return os.pread(self._descriptor, size, max(os.fstat(self._descriptor).st_size - size, 0))

    def expect(self, begins: Sequence[int], sizes: Sequence[int], gaps: bool) -> None:
        if gaps:  # without them the system reads ahead by itself
            for begin, size in zip(begins, sizes, strict=True):
                os.posix_fadvise(self._descriptor, begin, size, os.POSIX_FADV_WILLNEED)

    def read(self, buffers: Sequence[np.ndarray], begin: int, size: int) -> None:
        if os.preadv(self._descriptor, buffers, begin) != size:
            raise ValueError("its end is missing")


class RemoteFiles:
    """Files of an fsspec file system. What is expected of a file is fetched at once: a request takes long."""

    def __init__(self, system: AbstractFileSystem, folder: str):
        self._system, self._folder = system, folder

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file."""
        found = self._system.ls(self._folder, detail=True, refresh=True)
        return {one["name"].rsplit("/", 1)[-1]: one["size"] or 0 for one in found}

    def names(self) -> list[str]:
        return list(self.sizes())

    @contextmanager
    def open(self, name: str) -> Iterator[ShardFile]:
        yield _RemoteFile(self._system, f"{self._folder}/{name}")

    def replace(self, name: str, parts: Iterator[list[np.ndarray]]) -> None:
        """Stores flat arrays of bytes as one object."""
        self._system.pipe_file(f"{self._folder}/{name}", b"".join(buffer for buffers in parts for buffer in buffers))


class _RemoteFile:
    def __init__(self, system: AbstractFileSystem, path: str):
        self._system, self._path, self._fetched = system, path, {}

    def tail(self, size: int) -> bytes:
        return self._system.cat_file(self._path, start=-size)

    def expect(self, begins: Sequence[int], sizes: Sequence[int], gaps: bool) -> None:
        ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
        found = self._system.cat_ranges([self._path] * len(ends), list(begins), ends, on_error="raise")
        self._fetched = dict(zip(begins, found, strict=True))

    def read(self, buffers: Sequence[np.ndarray], begin: int, size: int) -> None:
        data = np.frombuffer(self._fetched.pop(begin), np.uint8)
        if len(data) != size:
            raise ValueError("its end is missing")
        position = 0
        for buffer in buffers:
            buffer[:] = data[position : position + len(buffer)]
            position += len(buffer)
