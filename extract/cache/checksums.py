"""The checksums of all chunks of a cache's RoI arrays, by which every read tells that a shard is the one written.

They are those that the chunks end with, so they cost nothing to compute or to compare. Row b of an array of checksums
has those of block b, one RoI array after the other. While a cache is being written, each block adds its row to
`block_checksums`; a finished cache has all rows in `checksums`, in one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import zarr

from extract.cache.manifest import MANIFEST
from extract.cache.tables import read_array, write_array

CHECKSUMS, BLOCK_CHECKSUMS = "checksums", "block_checksums"


def create_block_checksums(group: zarr.Group, chunks: Mapping[str, int], blocks: int) -> None:
    """Creates the array of the blocks that are being written: 1 and the checksums, 0 where a block is not written.

    `chunks` are the numbers of chunks of each RoI array in a block.
    """
    width = 1 + sum(chunks.values())
    group.create_array(
        BLOCK_CHECKSUMS,
        shape=(blocks, width),
        dtype=np.uint32,
        chunks=(1, width),
        fill_value=0,
        dimension_names=("block", "written_and_chunk"),
    )


class BlockChecksums:
    """The checksums of blocks that are being written."""

    def __init__(self, group: zarr.Group, chunks: Mapping[str, int]) -> None:
        """`chunks` as above; a group that an earlier version has begun has no checksums."""
        self._group, self._array, self._chunks = group, group.get(BLOCK_CHECKSUMS), chunks

    def write(self, block: int, checksums: Mapping[str, np.ndarray | None]) -> None:
        """Stores the checksums of a block's chunks, (n,) uint32 for each array that has any rows."""
        if self._array is None or any(sums is None for sums in checksums.values()):
            return
        row = [np.ones(1, np.uint32)]
        for name, size in self._chunks.items():
            found = checksums.get(name)
            found = np.empty(0, np.uint32) if found is None else found
            row.append(np.pad(found, (0, size - len(found))))
        self._array[block] = np.concatenate(row)

    def finish(self) -> None:
        """Writes the checksums of all blocks; nothing if those of a block are not known."""
        rows = None if self._array is None else self._array[:]
        if rows is not None and rows[:, 0].all():
            write_array(self._group, CHECKSUMS, rows[:, 1:], ("block", "chunk"))


def chunk_checksums(group: zarr.Group, url: str, chunks: Mapping[str, int]) -> dict[str, Callable[[], np.ndarray]]:
    """Returns for each RoI array a function that reads the checksums of its chunks, (n,) uint32; {} if none are known.

    `chunks` as above.
    """
    if CHECKSUMS not in group.attrs.get(MANIFEST, {}).get("metadata", {}):
        return {}
    read = cache(partial(read_array, group, CHECKSUMS, url))
    stops = np.cumsum(list(chunks.values())).tolist()

    def column(start: int, stop: int) -> np.ndarray:
        return read()[:, start:stop].reshape(-1)

    return {n: partial(column, stop - size, stop) for (n, size), stop in zip(chunks.items(), stops, strict=True)}
