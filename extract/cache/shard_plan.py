"""What to read from the shards of a RoI array for some of its rows, and where to put it. No input or output.

Example: rows 3, 4, 5, 6, 7 of chunks of 4 rows go to places 0 … 4 of the output. Chunk 1 (rows 4 … 7) is wanted whole,
at places in a row: it is read straight into the output. Of chunk 0 only row 3 is wanted: the chunk is read into
`staging`, and row 3 is copied from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Rows of one shard that are read together.

    Attributes:
        rows: (n,) int64, ascending without repeats.
        places: (n,) int64, their places in the output.
    """

    rows: np.ndarray
    places: np.ndarray


class ChunkTargets(NamedTuple):
    """Where the chunks of a piece go; R is the number of rows that are copied from `staging`.

    Attributes:
        chunks: (n,) int64, ascending, counted from the array's first chunk.
        targets: n flat uint8 arrays of one chunk's bytes each, parts of the output or of `staging`.
        staging: (m, chunk bytes) uint8, for the chunks that cannot be read straight into the output.
        staged_rows: (R,) int64, rows of `staging`, counted through its chunks.
        staged_places: (R,) int64, their places in the output.
    """

    chunks: np.ndarray
    targets: list[np.ndarray]
    staging: np.ndarray
    staged_rows: np.ndarray
    staged_places: np.ndarray


class Run(NamedTuple):
    """Adjacent chunks that one call reads: `chunks[start:stop]` of a piece, `size` bytes from byte `begin` on."""

    start: int
    stop: int
    begin: int
    size: int


def split_rows(rows: np.ndarray, places: np.ndarray, shard_rows: int, piece_rows: int) -> list[Piece]:
    """Splits rows, ascending and at least one, into pieces of one shard each and of at most `piece_rows` rows."""
    shard = rows // shard_rows
    bounds = [0, *(np.flatnonzero(shard[1:] != shard[:-1]) + 1).tolist(), len(rows)]
    parts = [
        slice(begin, min(begin + piece_rows, stop))
        for start, stop in pairwise(bounds)
        for begin in range(start, stop, piece_rows)
    ]
    return [Piece(rows[part], places[part]) for part in parts]


def chunk_targets(piece: Piece, output: np.ndarray, chunk_rows: int, row_bytes: int) -> ChunkTargets:
    """Returns where each chunk of a piece goes; `output` is the flat uint8 output, of `row_bytes` per row."""
    rows, places = piece
    chunk = rows // chunk_rows
    first = np.append(0, np.flatnonzero(chunk[1:] != chunk[:-1]) + 1)
    count = np.append(first[1:], len(rows)) - first
    straight = count == chunk_rows
    if chunk_rows > 1:
        jumps = np.append(0, np.cumsum(places[1:] != places[:-1] + 1))
        straight &= jumps[np.minimum(first + chunk_rows - 1, len(rows) - 1)] == jumps[first]
    staging = np.empty((int((~straight).sum()), chunk_rows * row_bytes), np.uint8)
    unused = iter(staging)
    targets = [
        output[begin : begin + chunk_rows * row_bytes] if direct else next(unused)
        for begin, direct in zip((places[first] * row_bytes).tolist(), straight.tolist(), strict=True)
    ]
    if not len(staging):
        return ChunkTargets(chunk[first], targets, staging, np.empty(0, np.int64), np.empty(0, np.int64))
    staged = np.repeat(~straight, count)
    position = np.repeat(np.cumsum(~straight) - 1, count)[staged]
    staged_rows = position * chunk_rows + rows[staged] % chunk_rows
    return ChunkTargets(chunk[first], targets, staging, staged_rows, places[staged])


def adjacent_runs(begins: np.ndarray, sizes: np.ndarray, limit: int) -> list[Run]:
    """Joins chunks that are adjacent in the file into runs of at most `limit` chunks.

    A run never crosses a multiple of `limit`, so that checksums of `limit` chunks can be compared at a time.

    Args:
        begins: (n,) first byte of each chunk in the file.
        sizes: (n,) its size in bytes.
        limit: most chunks per run.
    """
    starts = np.arange(len(begins)) % limit == 0
    starts[1:] |= begins[1:] != (begins + sizes)[:-1]
    first = np.flatnonzero(starts)
    stops = np.append(first[1:], len(begins))
    columns: Sequence[np.ndarray] = (first, stops, begins[first], np.add.reduceat(sizes, first))
    return [Run(*run) for run in zip(*(column.tolist() for column in columns), strict=True)]


def split_chunks(parts: Sequence[np.ndarray], rows: int, fill: object) -> Iterator[np.ndarray]:
    """Yields chunks of `rows` rows of the joined parts; copies only where parts meet. The last chunk is padded."""
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
