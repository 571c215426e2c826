"""RoI arrays read and written shard by shard, without Zarr's machinery.

Zarr takes a byte through four copies and a chunk through a dozen coroutines: it reads a cache at a tenth of the speed
of the same files read plainly, and of an object store it asks one chunk after the other. Here chunks go from the file
to where they are wanted, and their checksums are computed while they are still in the processor's cache. The files
are those that Zarr writes, byte for byte.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from extract.cache.shard_files import LocalFiles, RemoteFiles, ShardFile

MISSING = 2**64 - 1
"""Offset and length of a chunk that is not stored."""
BATCH_BYTES = 1 << 20  # what one call reads or writes: still in the cache when it comes to the checksums
BATCH_CHUNKS = 256  # each takes two of the 1,024 buffers that a call may name
PIECE_BYTES = 1 << 23  # what one thread reads at a time
SMALL_BYTES = 1 << 21  # pieces below this are no work for threads, which would wait for one another
PIECES_AHEAD = 32
THREADS = min(4, os.cpu_count() or 1)


class ShardedArray:
    """The shards of one RoI array; made by `from_zarr`."""

    def __init__(self, array: zarr.Array, files: LocalFiles | RemoteFiles, zstd: Zstd | None):
        self._files, self._zstd = files, zstd
        self._fill, self._zeros = array.fill_value, ".0" * (array.ndim - 1)
        self._chunk_rows, self._shard_rows = array.chunks[0], array.shards[0]
        self._per_shard = self._shard_rows // self._chunk_rows
        self._row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize

    @classmethod
    def from_zarr(cls, array: zarr.Array, url: str) -> ShardedArray | None:
        """The array of the cache at `url`; None if it is stored otherwise than by this library."""
        codec = array.metadata.codecs[0]
        inner = codec.codecs if isinstance(codec, ShardingCodec) else ()
        kinds = [type(one) for one in inner]
        known = (
            kinds in ([BytesCodec, Crc32cCodec], [BytesCodec, ZstdCodec, Crc32cCodec])
            and array.shards[1:] == array.chunks[1:] == array.shape[1:]
            and 0 not in array.shape[1:]
            and codec.index_location.value == "end"
            and [type(one) for one in codec.index_codecs] == [BytesCodec, Crc32cCodec]
            and array.metadata.chunk_key_encoding.separator == "."
            and sys.byteorder == "little"
        )
        if known and isinstance(array.store, LocalStore) and hasattr(os, "preadv") and hasattr(os, "posix_fadvise"):
            files = LocalFiles(str(array.store.root / array.path))
        elif known and isinstance(array.store, FsspecStore):
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url)
            files = RemoteFiles(system, f"{path.rstrip('/')}/{array.path}")
        else:
            return None
        return cls(array, files, Zstd(inner[1].level, inner[1].checksum) if len(inner) > 2 else None)

    def missing(self, shards: np.ndarray) -> int:
        """How many of these shards are not there."""
        return len({self._name(shard) for shard in shards.tolist()} - set(self._files.names()))

    def stored_bytes(self) -> int:
        """Size of all shards."""
        return sum(size for name, size in self._files.sizes().items() if name.startswith("c."))

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None = None) -> None:
        """Reads rows, ascending and without repeats, to `out[places]`, or to `out` as it is.

        Raises ValueError, OSError or RuntimeError for what is missing or damaged.
        """
        if not len(rows):
            return
        places = np.arange(len(rows)) if places is None else places
        step = max(PIECE_BYTES // self._row_bytes, 1)
        shard = rows // self._shard_rows
        parts = [
            slice(begin, min(begin + step, stop))
            for start, stop in pairwise([0, *(np.flatnonzero(shard[1:] != shard[:-1]) + 1).tolist(), len(rows)])
            for begin in range(start, stop, step)
        ]
        flat = out.reshape(-1).view(np.uint8)
        pieces = [self._read_piece(rows[part], flat, places[part]) for part in parts]
        if len(parts) == 1 or len(rows) * self._row_bytes < len(parts) * SMALL_BYTES:
            _one_after_the_other(pieces)
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(list, pieces))

    def _read_piece(self, rows: np.ndarray, flat: np.ndarray, places: np.ndarray) -> Iterator[None]:
        """Rows of one shard. Chunks that are wanted whole go straight to their place, others by a detour.

        Stops once, when the file knows what is to come.
        """
        size, width = self._chunk_rows, self._row_bytes
        chunk = rows // size
        first = np.append(0, np.flatnonzero(chunk[1:] != chunk[:-1]) + 1)
        count = np.append(first[1:], len(rows)) - first
        straight = count == size
        if size > 1:
            jumps = np.append(0, np.cumsum(places[1:] != places[:-1] + 1))
            straight &= jumps[np.minimum(first + size - 1, len(rows) - 1)] == jumps[first]
        detour = np.empty((int((~straight).sum()), size * width), np.uint8)
        spare = iter(detour)
        targets = [
            flat[begin : begin + size * width] if direct else next(spare)
            for begin, direct in zip((places[first] * width).tolist(), straight.tolist(), strict=True)
        ]
        with self._files.open(self._name(int(rows[0]) // self._shard_rows)) as file:
            yield from self._read_chunks(file, chunk[first] % self._per_shard, targets)
        if len(detour):
            wanted = np.repeat(~straight, count)
            slot = np.repeat(np.cumsum(~straight) - 1, count)[wanted] * size + rows[wanted] % size
            flat.reshape(-1, width)[places[wanted]] = detour.reshape(-1, width)[slot]

    def _read_chunks(self, file: ShardFile, chunks: np.ndarray, targets: Sequence[np.ndarray]) -> Iterator[None]:
        """Whole chunks of a shard, ascending, each to a flat array of bytes."""
        begins, lengths = self._index(file)[chunks].T
        if (begins == MISSING).any():
            raise ValueError("a chunk is missing")
        if not self._zstd and (lengths != len(targets[0]) + 4).any():
            raise ValueError("a chunk is of the wrong length")
        encoded = [np.empty(n - 4, np.uint8) for n in lengths.tolist()] if self._zstd else targets
        sums = np.empty((len(chunks), 4), np.uint8)
        buffers = [buffer for pair in zip(encoded, sums, strict=True) for buffer in pair]
        step = min(max(BATCH_BYTES // int(lengths.max()), 1), BATCH_CHUNKS)
        starts = np.arange(len(chunks)) % step == 0
        starts[1:] |= begins[1:] != (begins + lengths)[:-1]
        runs = np.flatnonzero(starts)
        stops = np.append(runs[1:], len(chunks))
        begins, sizes = begins[runs].tolist(), np.add.reduceat(lengths, runs).tolist()
        file.expect(begins, sizes, gaps=bool(chunks[-1] - chunks[0] >= len(chunks)))
        yield
        checked = 0
        for start, stop, begin, size in zip(runs.tolist(), stops.tolist(), begins, sizes, strict=True):
            file.read(buffers[2 * start : 2 * stop], begin, size)
            if stop % step == 0 or stop == len(chunks):
                if _checksums(encoded[checked:stop]) != sums[checked:stop].tobytes():
                    raise ValueError("checksums differ")
                checked = stop
        if self._zstd:
            for source, target in zip(encoded, targets, strict=True):
                self._zstd.decode(source, target)

    def _index(self, file: ShardFile) -> np.ndarray:
        """(chunks, 2) uint64: where each chunk of a shard begins, and its length."""
        data = np.frombuffer(file.tail(16 * self._per_shard + 4), np.uint8)
        if len(data) != 16 * self._per_shard + 4 or _checksums([data[:-4]]) != data[-4:].tobytes():
            raise ValueError("its index is damaged")
        return data[:-4].view("<u8").reshape(-1, 2)

    def write(self, start: int, parts: Sequence[np.ndarray]) -> None:
        """Replaces shards by the rows of `parts`, one after the other from row `start` on, the first of a shard."""
        chunks = _chunks(parts, self._chunk_rows, self._fill)
        shards = -(-sum(map(len, parts)) // self._shard_rows)
        for shard in range(start // self._shard_rows, start // self._shard_rows + shards):
            self._files.replace(self._name(shard), self._encoded(islice(chunks, self._per_shard)))

    def _encoded(self, chunks: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The bytes of a shard, a few chunks at a time, the index last."""
        index = np.full((self._per_shard, 2), MISSING, "<u8")
        done = position = 0
        step = min(max(BATCH_BYTES // (self._chunk_rows * self._row_bytes), 1), BATCH_CHUNKS)
        while encoded := [chunk.reshape(-1).view(np.uint8) for chunk in islice(chunks, step)]:
            if self._zstd:
                encoded = [np.frombuffer(self._zstd.encode(chunk), np.uint8) for chunk in encoded]
            sums = np.frombuffer(_checksums(encoded), np.uint8).reshape(-1, 4)
            ends = position + np.cumsum([len(chunk) + 4 for chunk in encoded])
            index[done : done + len(encoded)] = np.stack([[position, *ends[:-1]], np.diff(ends, prepend=position)], 1)
            done, position = done + len(encoded), int(ends[-1])
            yield [buffer for pair in zip(encoded, sums, strict=True) for buffer in pair]
        data = index.reshape(-1).view(np.uint8)
        yield [data, np.frombuffer(_checksums([data]), np.uint8)]

    def _name(self, shard: int) -> str:
        return f"c.{shard}{self._zeros}"


def _one_after_the_other(pieces: Sequence[Iterator[None]]) -> None:
    """Reads pieces in turn, while the disk is busy with those behind."""
    for position in range(len(pieces) + PIECES_AHEAD):
        if position < len(pieces):
            next(pieces[position])
        if position >= PIECES_AHEAD:
            next(pieces[position - PIECES_AHEAD], None)


def _chunks(parts: Sequence[np.ndarray], rows: int, fill: object) -> Iterator[np.ndarray]:
    """So many rows each, of the parts in turn without copies but where parts meet; the last one filled up."""
    rest: list[np.ndarray] = []
    for part in parts:
        missing = min(-sum(map(len, rest)) % rows, len(part))
        if missing:
            rest.append(part[:missing])
        if rest and sum(map(len, rest)) == rows:
            yield np.concatenate(rest)
            rest = []
        whole = missing + (len(part) - missing) // rows * rows
        for begin in range(missing, whole, rows):
            yield part[begin : begin + rows]
        if whole < len(part):
            rest.append(part[whole:])
    if rest:
        last = np.full((rows, *rest[0].shape[1:]), fill, rest[0].dtype)
        np.concatenate(rest, out=last[: sum(map(len, rest))])
        yield last


def _checksums(buffers: Sequence[np.ndarray]) -> bytes:
    """crc32c of each, four bytes little-endian."""
    return np.array([google_crc32c.value(buffer) for buffer in buffers], "<u4").tobytes()
