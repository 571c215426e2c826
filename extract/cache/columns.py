"""The RoI arrays of a cache: created by the writer, read and written in rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from extract.cache.checksums import chunk_checksums, create_block_checksums
from extract.cache.format import COLUMNS, FILL, OPTIONAL, OWNER_COLUMN, CacheError, Column, naming_damage, row_bytes
from extract.cache.shard_io import ShardedArray
from extract.utils.errors import one_line

# One pooled feature of 256 channels fills a chunk. Training reads half of an image's RoIs: from chunks of 16 rows it
# would read two bytes for each byte it needs (four with the kernel's readahead), from chunks of one row hardly more
# than one. Reading all rows is as fast, because `shard_io` avoids Zarr's cost per chunk.
CHUNK_BYTES = {"train": 32 * 1024, "val": 128 * 1024}
"""By split. Of val caches whole images are read: chunks may be larger, which saves the cost of each."""
MAX_CHUNK_ROWS = 4096
ARRAYS = tuple(column.name for column in (*COLUMNS.values(), OWNER_COLUMN))
"""Names of the RoI arrays in the order of their checksums."""
SHARD_BYTES = 128 * 1024 * 1024


class StoredColumn:
    """One RoI array of a cache; through `ShardedArray` where its layout and store allow, else through Zarr.

    Attributes:
        path: URL of the array, for messages.
        row_shape: shape after R.
        dtype: of the stored values.
        row_bytes: bytes of one row before compression.
        sharded: whether `ShardedArray` reads and writes it.
        chunk_rows: rows of one chunk.
    """

    def __init__(self, array: zarr.Array, url: str, checksums: Callable[[], np.ndarray] | None = None) -> None:
        """`checksums` reads those that its chunks must have; without `ShardedArray` they are not compared."""
        self._array = array
        self._shards = ShardedArray.from_zarr(array, url, checksums)
        self.chunk_rows: int = array.chunks[0]
        self.path = f"{url}/{array.path}"
        self.row_shape: tuple[int, ...] = array.shape[1:]
        self.dtype: np.dtype = array.dtype
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        self.sharded = self._shards is not None

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None = None) -> None:
        """Reads rows, ascending and without repeats, into `out[places]`, or into `out` in order.

        Raises CacheError naming the array if it is damaged.
        """
        try:
            if self._shards is not None:
                self._shards.read(rows, out, places)
            else:
                values = self._array.get_orthogonal_selection((rows,))
                _check_not_missing(values)
                out[slice(None) if places is None else places] = values
        except (ValueError, OSError, RuntimeError) as error:
            raise CacheError(f"{self.path}: damaged shard: {one_line(error)}") from error

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows, ascending and without repeats. Raises as `read` does."""
        out = np.empty((len(rows), *self.row_shape), self.dtype)
        self.read(rows, out)
        return out

    def write(self, start: int, parts: Sequence[np.ndarray]) -> np.ndarray | None:
        """Writes the rows of `parts` in order, beginning at row `start`, which must be the first of a shard.

        Returns the checksums of the chunks written, (n,) uint32; None if they are not known.
        """
        if self._shards is not None:
            return self._shards.write(start, parts)
        self._array[start : start + sum(map(len, parts))] = np.concatenate(parts)
        return None

    def stored_bytes(self) -> int:
        """Returns the size of the array in its store."""
        return self._array.nbytes_stored() if self._shards is None else self._shards.stored_bytes()

    def check_shards(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Raises CacheError if a shard of the row ranges `starts[i]:stops[i]`, none of them empty, is missing.

        Zarr would return fill values for it.
        """
        shard_rows = self._array.shards[0]
        change = np.zeros(self._array.shape[0] // shard_rows + 1, np.int64)
        np.add.at(change, starts // shard_rows, 1)
        np.add.at(change, (stops - 1) // shard_rows + 1, -1)
        needed = np.flatnonzero(np.cumsum(change))
        if self._shards is not None:
            found = len(needed) - self._shards.count_missing(needed)
        else:
            found = self._array.nchunks_initialized * self._array.chunks[0] // shard_rows
        if found < len(needed):
            raise CacheError(f"{self.path}: {found} shards, the manifest needs {len(needed)}; extract it again")


def _check_not_missing(values: np.ndarray) -> None:
    """Raises ValueError if a row (n, …) that Zarr returned has fill values only, as it does of a missing chunk."""
    fill = FILL[values.dtype.kind]
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if rows.size and ((rows != rows) if fill != fill else (rows == fill)).all(axis=1).any():
        raise ValueError("a chunk is missing")


def open_columns(group: zarr.Group, url: str, level: str) -> dict[str, StoredColumn]:
    """Opens the columns that a cache has, by their field in `RoIs`. Raises CacheError if it lacks one."""
    columns = columns_of(open_arrays(group, url, [column.name for column in COLUMNS.values()]))
    derived = {"logits"} if level == "hidden" else set()
    if missing := COLUMNS.keys() - columns.keys() - OPTIONAL - derived:
        raise CacheError(f"{url}: has no {', '.join(sorted(COLUMNS[field].name for field in missing))}")
    return columns


def open_owners(group: zarr.Group, url: str) -> StoredColumn:
    """Opens the array of the rows' owners. Raises CacheError if there is none."""
    with naming_damage(url):
        arrays = open_arrays(group, url)
        if OWNER_COLUMN.name not in arrays:
            raise CacheError(f"{url}: has no {OWNER_COLUMN.name}")
        return arrays[OWNER_COLUMN.name]


def open_arrays(group: zarr.Group, url: str, names: Sequence[str] = ARRAYS) -> dict[str, StoredColumn]:
    """Opens those of the RoI arrays that a cache has, by name; `names` are the first ones of `ARRAYS`."""
    arrays: dict[str, zarr.Array] = {name: array for name in names if (array := group.get(name)) is not None}
    rows = int(group.attrs["rows_per_block"])
    checksums = chunk_checksums(group, url, {name: rows // array.chunks[0] for name, array in arrays.items()})
    return {name: StoredColumn(array, url, checksums.get(name)) for name, array in arrays.items()}


def columns_of(arrays: Mapping[str, StoredColumn]) -> dict[str, StoredColumn]:
    """Returns those of the RoI arrays that hold a field of `RoIs`, by field."""
    return {field: arrays[column.name] for field, column in COLUMNS.items() if column.name in arrays}


def create_columns(
    group: zarr.Group, split: str, shapes: Mapping[str, tuple[int, ...]], blocks: int, block_capacity: int
) -> int:
    """Creates the RoI arrays of a cache, empty; returns the number of rows per block.

    Args:
        group: of the cache.
        split: of the cache.
        shapes: of each stored field of `RoIs`, after R.
        blocks: number of blocks.
        block_capacity: upper bound of the RoIs of one block.
    """
    # Powers of two, so that chunks divide shards and shards divide blocks.
    shard_rows = _power_of_two(SHARD_BYTES // row_bytes(shapes))
    shard_rows = min(shard_rows, 2 * _power_of_two(max(block_capacity - 1, 1)))
    rows_per_block = -(-block_capacity // shard_rows) * shard_rows
    columns = {COLUMNS[field]: shape for field, shape in shapes.items()}
    chunks = {}
    for column, shape in {**columns, OWNER_COLUMN: ()}.items():
        array = _create_column(group, column, (blocks * rows_per_block, *shape), shard_rows, CHUNK_BYTES[split])
        chunks[column.name] = rows_per_block // array.chunks[0]
    create_block_checksums(group, chunks, blocks)
    return rows_per_block


def _create_column(
    group: zarr.Group, column: Column, whole: tuple[int, ...], shard_rows: int, chunk_bytes: int
) -> zarr.Array:
    dtype, shape = np.dtype(column.dtype), whole[1:]
    width = max(math.prod(shape) * dtype.itemsize, 1)
    chunk_rows = min(_power_of_two(chunk_bytes // width), MAX_CHUNK_ROWS, shard_rows)
    inner = [BytesCodec(), ZstdCodec(level=1)] if column.compressed else [BytesCodec()]
    axes = column.axes if column is not COLUMNS["boxes"] else column.axes[-len(shape) :]
    return group.create_array(
        column.name,
        shape=whole,
        dtype=column.dtype,
        chunks=(shard_rows, *shape),
        # Spelled out, because the checksum must be on every inner chunk, not on the shard.
        serializer=ShardingCodec(chunk_shape=(chunk_rows, *shape), codecs=[*inner, Crc32cCodec()]),
        compressors=None,
        # One file per shard in one folder.
        chunk_key_encoding={"name": "default", "separator": "."},
        fill_value=FILL[dtype.kind],
        dimension_names=("roi", *axes[: len(shape)]),
    )


def _power_of_two(limit: int) -> int:
    """Returns the largest power of two up to `limit`, at least 1."""
    return 1 << max(limit.bit_length() - 1, 0)
