"""RoI arrays read and written shard by shard, without Zarr's machinery.

Zarr copies every byte four times and runs a dozen coroutines per chunk: it reads a cache at a tenth of the speed of
plain reads of the same files, and requests the chunks in an object store one after the other. Here chunks go straight
from the file to their place in the output, and checksums are computed while the bytes are still in the CPU's cache.
The files are those that Zarr writes, byte for byte.

Reading: `shard_plan` splits the rows into pieces of one shard. Each piece is planned (the shard's index is read),
prefetched, and executed later, while the disk fetches the pieces that follow.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from extract.cache.shard_files import LocalFiles, RemoteFiles, ShardFile, ShardFiles
from extract.cache.shard_plan import ChunkTargets, Piece, Run, adjacent_runs, chunk_targets, split_chunks, split_rows

MISSING = 2**64 - 1
"""Offset and length of a chunk that is not stored."""
CHECKSUM_BYTES = 4
BATCH_BYTES = 1 << 20  # per read or write call: still in the CPU's cache when the checksums are computed
BATCH_CHUNKS = 256  # two buffers each, of the 1,024 that one call may have
PIECE_BYTES = 1 << 23  # read by one thread at a time
SMALL_PIECE_BYTES = 1 << 21  # threads do not pay below this
PIECES_AHEAD = 32
THREADS = min(4, os.cpu_count() or 1)


class ReadPlan(NamedTuple):
    """A piece that is ready to be read.

    Attributes:
        file, name: the open shard and its name.
        runs: what to read, in this order.
        batch: number of chunks whose checksums are compared together.
        encoded: flat uint8 arrays that receive the chunks as stored; `goal.targets` themselves if not compressed.
        checksums: (chunks, 4) uint8, receives the stored checksums.
        expected: the checksums of the chunks that were written, as stored; None if they are not known.
        goal: where the decoded chunks go.
    """

    file: ShardFile
    name: str
    runs: list[Run]
    batch: int
    encoded: list[np.ndarray]
    checksums: np.ndarray
    expected: bytes | None
    goal: ChunkTargets


class ShardedArray:
    """The shards of one RoI array; made by `from_zarr`."""

    def __init__(
        self, array: zarr.Array, files: ShardFiles, zstd: Zstd | None, checksums: Callable[[], np.ndarray] | None
    ) -> None:
        self._files, self._zstd, self._read_checksums = files, zstd, checksums
        self._fill, self._zeros = array.fill_value, ".0" * (array.ndim - 1)
        self._chunk_rows, self._shard_rows = array.chunks[0], array.shards[0]
        self._chunks_per_shard = self._shard_rows // self._chunk_rows
        self._row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize

    @classmethod
    def from_zarr(
        cls, array: zarr.Array, url: str, checksums: Callable[[], np.ndarray] | None = None
    ) -> ShardedArray | None:
        """Returns the array of the cache at `url`; None if its layout or its store is not one that this class reads.

        `checksums` reads the checksums that its chunks must have.
        """
        codec = array.metadata.codecs[0]
        inner: Sequence[Any] = codec.codecs if isinstance(codec, ShardingCodec) else ()
        kinds = [type(one) for one in inner]
        readable = (
            kinds in ([BytesCodec, Crc32cCodec], [BytesCodec, ZstdCodec, Crc32cCodec])
            and array.shards[1:] == array.chunks[1:] == array.shape[1:]
            and 0 not in array.shape[1:]
            and codec.index_location.value == "end"
            and [type(one) for one in codec.index_codecs] == [BytesCodec, Crc32cCodec]
            and array.metadata.chunk_key_encoding.separator == "."
            and sys.byteorder == "little"
        )
        files: ShardFiles
        if readable and isinstance(array.store, LocalStore) and hasattr(os, "preadv") and hasattr(os, "posix_fadvise"):
            files = LocalFiles(str(array.store.root / array.path))
        elif readable and isinstance(array.store, FsspecStore):
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url)
            files = RemoteFiles(system, f"{path.rstrip('/')}/{array.path}")
        else:
            return None
        return cls(array, files, Zstd(inner[1].level, inner[1].checksum) if len(inner) > 2 else None, checksums)

    @cached_property
    def _checksums(self) -> np.ndarray | None:
        return None if self._read_checksums is None else self._read_checksums()

    def count_missing(self, shards: np.ndarray) -> int:
        """Returns how many of these shards are not in the store."""
        return len({self._name(shard) for shard in shards.tolist()} - set(self._files.names()))

    def stored_bytes(self) -> int:
        """Returns the size of all shards."""
        return sum(size for name, size in self._files.sizes().items() if name.startswith("c."))

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None = None) -> None:
        """Reads rows, ascending and without repeats, into `out[places]`, or into `out` in order.

        Raises ValueError, OSError or RuntimeError if a chunk is missing or damaged.
        """
        if not len(rows):
            return
        places = np.arange(len(rows)) if places is None else places
        pieces = split_rows(rows, places, self._shard_rows, max(PIECE_BYTES // self._row_bytes, 1))
        output = out.reshape(-1).view(np.uint8)
        if len(pieces) == 1 or len(rows) * self._row_bytes < len(pieces) * SMALL_PIECE_BYTES:
            self._read_in_turn(pieces, output)
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda piece: self._execute(self._plan(piece, output), output), pieces))

    def write(self, start: int, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Writes the rows of `parts` in order from row `start` on, the first of a shard. Replaces whole shards.

        Returns the checksums of the chunks written, (n,) uint32.
        """
        written: list[np.ndarray] = []
        chunks = split_chunks(parts, self._chunk_rows, self._fill)
        shards = -(-sum(map(len, parts)) // self._shard_rows)
        for shard in range(start // self._shard_rows, start // self._shard_rows + shards):
            self._files.replace(self._name(shard), self._encode_shard(islice(chunks, self._chunks_per_shard), written))
        return np.concatenate(written)

    def _read_in_turn(self, pieces: Sequence[Piece], output: np.ndarray) -> None:
        """Reads pieces one after the other; plans and prefetches `PIECES_AHEAD` pieces ahead."""
        plans: deque[ReadPlan] = deque()
        try:
            for piece in pieces:
                plans.append(self._plan(piece, output))
                if len(plans) > PIECES_AHEAD:
                    self._execute(plans.popleft(), output)
            while plans:
                self._execute(plans.popleft(), output)
        finally:
            for plan in plans:
                plan.file.close()

    def _plan(self, piece: Piece, output: np.ndarray) -> ReadPlan:
        """Opens the piece's shard, looks its chunks up in the index and prefetches them."""
        goal = chunk_targets(piece, output, self._chunk_rows, self._row_bytes)
        name = self._name(int(piece.rows[0]) // self._shard_rows)
        file = self._files.open(name)
        try:
            begins, sizes = self._read_index(file)[goal.chunks % self._chunks_per_shard].T
            self._check_index(begins, sizes)
            encoded = [np.empty(n - CHECKSUM_BYTES, np.uint8) for n in sizes.tolist()] if self._zstd else goal.targets
            batch = min(max(BATCH_BYTES // int(sizes.max()), 1), BATCH_CHUNKS)
            runs = adjacent_runs(begins, sizes, batch)
            gaps = bool(goal.chunks[-1] - goal.chunks[0] >= len(goal.chunks))
            file.prefetch([run.begin for run in runs], [run.size for run in runs], gaps)
        except ValueError as error:
            file.close()
            raise ValueError(f"{error} ({name})") from None
        except BaseException:
            file.close()
            raise
        expected = None if self._checksums is None else self._checksums[goal.chunks].tobytes()
        return ReadPlan(
            file, name, runs, batch, encoded, np.empty((len(sizes), CHECKSUM_BYTES), np.uint8), expected, goal
        )

    def _execute(self, plan: ReadPlan, output: np.ndarray) -> None:
        """Reads a planned piece, compares checksums, decodes, and copies staged rows to their places."""
        buffers = [buffer for pair in zip(plan.encoded, plan.checksums, strict=True) for buffer in pair]
        compared = 0
        with closing(plan.file) as file:
            for start, stop, begin, size in plan.runs:
                file.read(buffers[2 * start : 2 * stop], begin, size)
                if stop % plan.batch == 0 or stop == len(plan.encoded):
                    if _checksums(plan.encoded[compared:stop]) != plan.checksums[compared:stop].tobytes():
                        raise ValueError(f"checksums differ ({plan.name})")
                    compared = stop
        goal = plan.goal
        if plan.expected is not None and plan.checksums.tobytes() != plan.expected:
            raise ValueError(f"not the one that was written, but another cache's, array's or time's ({plan.name})")
        if self._zstd:
            for source, target in zip(plan.encoded, goal.targets, strict=True):
                self._zstd.decode(source, target)
        if len(goal.staging):
            rows = output.reshape(-1, self._row_bytes)
            rows[goal.staged_places] = goal.staging.reshape(-1, self._row_bytes)[goal.staged_rows]

    def _read_index(self, file: ShardFile) -> np.ndarray:
        """Returns (chunks, 2) uint64, where each chunk of a shard begins, and its size with its checksum."""
        size = 16 * self._chunks_per_shard + CHECKSUM_BYTES
        data = np.frombuffer(file.tail(size), np.uint8)
        if len(data) != size or _checksums([data[:-CHECKSUM_BYTES]]) != data[-CHECKSUM_BYTES:].tobytes():
            raise ValueError("its index is damaged")
        return data[:-CHECKSUM_BYTES].view("<u8").reshape(-1, 2)

    def _check_index(self, begins: np.ndarray, sizes: np.ndarray) -> None:
        """Raises ValueError if a chunk is not stored, or not of the size of a raw chunk where chunks are raw."""
        if (begins == MISSING).any():
            raise ValueError("a chunk is missing")
        if not self._zstd and (sizes != self._chunk_rows * self._row_bytes + CHECKSUM_BYTES).any():
            raise ValueError("a chunk is of the wrong length")

    def _encode_shard(self, chunks: Iterator[np.ndarray], written: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Yields the bytes of a shard, a few chunks at a time, the index last; adds the checksums to `written`."""
        index = np.full((self._chunks_per_shard, 2), MISSING, "<u8")
        done = position = 0
        batch = min(max(BATCH_BYTES // (self._chunk_rows * self._row_bytes), 1), BATCH_CHUNKS)
        while encoded := [chunk.reshape(-1).view(np.uint8) for chunk in islice(chunks, batch)]:
            if self._zstd:
                encoded = [np.frombuffer(self._zstd.encode(chunk), np.uint8) for chunk in encoded]
            checksums = np.frombuffer(_checksums(encoded), np.uint8).reshape(-1, CHECKSUM_BYTES)
            written.append(checksums.view("<u4").ravel())
            ends = position + np.cumsum([len(chunk) + CHECKSUM_BYTES for chunk in encoded])
            index[done : done + len(encoded)] = np.stack([[position, *ends[:-1]], np.diff(ends, prepend=position)], 1)
            done, position = done + len(encoded), int(ends[-1])
            yield [buffer for pair in zip(encoded, checksums, strict=True) for buffer in pair]
        data = index.reshape(-1).view(np.uint8)
        yield [data, np.frombuffer(_checksums([data]), np.uint8)]

    def _name(self, shard: int) -> str:
        return f"c.{shard}{self._zeros}"


def _checksums(buffers: Sequence[np.ndarray]) -> bytes:
    """Returns the crc32c of each, four bytes little-endian."""
    return np.array([google_crc32c.value(buffer) for buffer in buffers], "<u4").tobytes()
