"""Writing RoI caches.

A cache is written in blocks of consecutive images. A block owns a fixed range of rows in every array. Therefore
processes need no coordination: blocks may be written in any order, and again after an interruption, with the same
bytes. An entry in `progress` marks a block as written; the manifest, which marks the cache as complete, comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import zarr

from extract.cache.checksums import BlockChecksums
from extract.cache.columns import columns_of, open_arrays
from extract.cache.derived import UpperLayers, check_derived
from extract.cache.format import (
    COLUMNS,
    IMAGES_PER_BLOCK,
    OWNER_COLUMN,
    CacheError,
    Projection,
    block_slice,
    num_blocks,
    open_group,
)
from extract.cache.opening import open_cache
from extract.cache.projections import read_projections
from extract.cache.reader import RoICache
from extract.cache.sealing import seal
from extract.cache.tables import write_array
from extract.cache.values import check_values, image_digest, to_stored
from extract.rois import RoIs
from extract.utils.files import PARTIAL


def resume_cache(url: str) -> CacheWriter:
    """Returns the writer of an unfinished cache. Raises FileNotFoundError or CacheError if there is none."""
    group = open_group(url, "r+")
    if group.attrs["complete"]:
        raise CacheError(f"{url}: is finished already")
    return CacheWriter(group, url)


class CacheWriter:
    """The writer of an unfinished cache, block by block; returned by `create_cache` and `resume_cache`."""

    def __init__(self, group: zarr.Group, url: str, final_url: str | None = None) -> None:
        """`url` is where the cache is written, `final_url` where it will be."""
        self.url, self._final_url = url, final_url or url.removesuffix(PARTIAL)
        self._group, self._progress = group, group["progress"]
        self._image_ids = group["images/image_id"][:]
        arrays = open_arrays(group, url)
        self._columns = columns_of(arrays)
        self._owners = arrays[OWNER_COLUMN.name]
        attributes = group.attrs.asdict()
        self._layers = None if "logits" in self._columns else UpperLayers.read(group, url)
        self._rows_per_block = int(attributes["rows_per_block"])
        self._checksums = BlockChecksums(
            group, {name: self._rows_per_block // column.chunk_rows for name, column in arrays.items()}
        )
        if attributes["images_per_block"] != IMAGES_PER_BLOCK:
            raise CacheError(
                f"{url}: is written in blocks of {attributes['images_per_block']} images, "
                f"this library writes blocks of {IMAGES_PER_BLOCK}; --overwrite starts anew"
            )

    @property
    def projections(self) -> list[Projection]:
        """See `RoICache.projections`."""
        return read_projections(self._group, self.url)

    def pending(self) -> list[int]:
        """Returns the blocks not written yet, ascending."""
        counts = self._progress[:, 0]
        return [b for b in range(num_blocks(len(counts))) if (counts[block_slice(b)] < 0).any()]

    def write_block(self, block: int, rois: Sequence[RoIs]) -> None:
        """Stores the images of one block, in the order of the image table.

        Raises CacheError for other images, for more RoIs than a block has rows, for values that are not valid.
        """
        expected = self._image_ids[block_slice(block)].tolist()
        got = [r.image_id for r in rois]
        if got != expected:
            raise CacheError(f"{self._final_url}: block {block} holds images {expected}, got {got}")
        counts = np.array([len(r) for r in rois], np.int32)
        if counts.sum() > self._rows_per_block:
            raise CacheError(
                f"{self._final_url}: block {block} has {counts.sum()} RoIs, its capacity is {self._rows_per_block}"
            )
        images = [self._to_stored(r) for r in rois]
        with ThreadPoolExecutor(1) as pool:
            # Hashing takes as long as writing, which mostly waits for the disk.
            digests = pool.map(image_digest, [list(arrays.values()) for arrays in images])
            sums: dict[str, np.ndarray | None] = {}
            if counts.sum():
                start = block * self._rows_per_block
                owners = np.arange(len(counts), dtype=np.int32) + block * IMAGES_PER_BLOCK
                sums[OWNER_COLUMN.name] = self._owners.write(start, [np.repeat(owners, counts)])
                for field, column in self._columns.items():
                    sums[COLUMNS[field].name] = column.write(start, [arrays[field] for arrays in images])
            self._checksums.write(block, sums)
            self._progress[block_slice(block)] = np.stack([counts, list(digests)], 1)

    def finish(self) -> RoICache:
        """Writes the manifest and opens the cache. Raises CacheError while blocks are pending."""
        counts, digests = self._progress[:].T
        if (counts < 0).any():
            raise CacheError(f"{self._final_url}: {(counts < 0).sum()} of {len(counts)} images are not written yet")
        starts = np.empty(len(counts), np.int64)
        for block in range(num_blocks(len(counts))):
            inside = counts[block_slice(block)]
            starts[block_slice(block)] = block * self._rows_per_block + np.cumsum(inside) - inside
        write_array(self._group, "images/roi_start", starts, ("image",))
        write_array(self._group, "images/roi_count", counts.astype(np.int32), ("image",))
        write_array(self._group, "images/digest", digests, ("image",))
        self._checksums.finish()
        seal(self._group, self.url, self._final_url)
        return open_cache(self._final_url)

    def _to_stored(self, rois: RoIs) -> dict[str, np.ndarray]:
        """Returns one image's arrays as they are stored, by field. Raises CacheError naming the image."""
        try:
            check_values(rois)
            if self._layers is not None:
                check_derived(rois, self._layers)
            return {f: to_stored(rois, f, COLUMNS[f], column.row_shape) for f, column in self._columns.items()}
        except CacheError as error:
            raise CacheError(f"{self._final_url}: image {rois.image_id}: {error}") from None
