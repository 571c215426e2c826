"""A finished RoI cache, as a sequence of images and as columns of packed rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, overload

import numpy as np
import zarr

from extract.cache.columns import StoredColumn, open_columns, open_owners
from extract.cache.derived import DerivedRoIs, UpperLayers
from extract.cache.format import (
    COLUMNS,
    IMAGE_COLUMNS,
    IMAGES_PER_BLOCK,
    OPTIONAL,
    CacheError,
    Header,
    Layers,
    Projection,
    block_slice,
    fingerprint,
    open_group,
)
from extract.cache.manifest import MANIFEST
from extract.cache.packing import Packing
from extract.cache.projections import num_directions, read_projections
from extract.cache.summary import CacheSummary
from extract.cache.tables import read_array, read_class_map, read_classes, read_fc_layers
from extract.cache.values import from_stored
from extract.rois import RoIs

ROWS_AT_ONCE = 1 << 20
SMALL_ROW_BYTES = 64
"""Columns of at most this many bytes per row are read for a whole block of images, which takes no longer."""
CACHED_BLOCKS = 4


class RoICache(CacheSummary, Sequence[RoIs]):
    """A finished cache, read-only: a sequence of `RoIs`, one per image. Open it with `open_cache`.

    Several threads may read at once.

    Attributes:
        url: path or fsspec URL.
        header: the metadata; its fields are also split, level, stages, detector and provenance of the cache.
        split: "train" or "val".
        level: feature level, one of `extract.cache.format.LEVELS`.
        stages: matching IoU of each stage, length S.
        detector: the detector's description, JSON values.
        provenance: what else the content depends on, JSON values.
        class_map: the detector's outputs in the order of the class table; None if output i is class i.
        classes: DataFrame indexed by contiguous class: category_id, name, frequency, image_count, instance_count,
            the counts of the training set.
        num_classes: K, without background.
        images: DataFrame in stored order: image_id, height, width, flipped, roi_count.
        offsets: (N+1,) int64; image i owns the packed rows `offsets[i]:offsets[i+1]` of `read` and `take`.
        digests: (N,) int64, each image's digest when it was written.
        has_manifest: whether checksums of its metadata and of all chunks are known, as in caches of this version.
        num_directions: Q; so many features of level "hidden" are coordinates, the last ones.
        columns: the stored arrays, by their field in `RoIs`.
    """

    def __init__(self, group: zarr.Group, url: str, kept: np.ndarray | slice = slice(None)) -> None:
        """`kept` (n,) int64 or a slice are the stored images that belong to it, ascending."""
        import pandas as pd

        self.url = url
        self.header = Header.from_attributes(group.attrs.asdict())
        self.split: str = self.header.split
        self.level: str = self.header.level
        self.stages: tuple[float, ...] = self.header.stages
        self.detector: Mapping[str, Any] = self.header.detector
        self.provenance: Mapping[str, Any] = self.header.provenance
        self.columns: dict[str, StoredColumn] = open_columns(group, url, self.level)
        self.num_directions = num_directions(group)
        self.classes: pd.DataFrame = read_classes(group, url)
        self.num_classes = len(self.classes)
        self.class_map = read_class_map(self.detector, self.num_classes, url)
        self._image_table = {name: read_array(group, f"images/{name}", url)[kept] for name in IMAGE_COLUMNS}
        self.images = pd.DataFrame(self._image_table)
        starts = read_array(group, "images/roi_start", url)[kept]
        self._packing = Packing(starts, self._image_table["roi_count"], url)
        self.offsets: np.ndarray = self._packing.offsets
        self.digests = read_array(group, "images/digest", url)[kept]
        self.has_manifest = MANIFEST in group.attrs
        self._group, self._kept = group, kept
        self._position = {int(image_id): i for i, image_id in enumerate(self.images["image_id"])}
        self._small_columns: Callable[[int], dict[str, np.ndarray]]
        self._small_columns = lru_cache(CACHED_BLOCKS)(self._read_small_columns)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, position: int) -> RoIs: ...

    @overload
    def __getitem__(self, position: slice) -> list[RoIs]: ...

    def __getitem__(self, position: int | slice) -> RoIs | list[RoIs]:
        """Returns the RoIs of the image at a position of `images`, or of several; `image` finds them by id."""
        if isinstance(position, slice):
            return [self.image_at(i) for i in range(len(self))[position]]
        return self.image_at(position)

    def image_at(self, position: int, fields: Collection[str] | None = None) -> RoIs:
        """Returns the RoIs of the image at a position of `images`.

        Args:
            position: negative positions count from the end.
            fields: names of fields; optional fields (`features` and `masks`, which are large) that are not among them
                are None. None reads all fields.

        Raises CacheError for an unknown field and for damage, IndexError for a position outside.
        """
        if unknown := set(fields or ()) - COLUMNS.keys():
            raise CacheError(f"{self.url}: RoIs have no {', '.join(sorted(unknown))}; they have {', '.join(COLUMNS)}")
        position = range(len(self))[position]
        block = position // IMAGES_PER_BLOCK
        first, stop = self.offsets[position : position + 2] - self.offsets[block * IMAGES_PER_BLOCK]
        small = {field: values[first:stop].copy() for field, values in self._small_columns(block).items()}
        unwanted = set() if fields is None else OPTIONAL - set(fields)
        large = self._read_images(self.columns.keys() - small.keys() - unwanted, position, position + 1)
        values: dict[str, Any] = {name: self._image_table[name][position].item() for name in IMAGE_COLUMNS[:-1]}
        values |= dict.fromkeys(OPTIONAL) | small | large
        if "logits" in self.columns:
            return RoIs(**values)
        rows = np.arange(*self.offsets[position : position + 2])
        return DerivedRoIs.make(self._upper_layers, partial(self.take, "features", rows), **values)

    def image(self, image_id: int) -> RoIs:
        """Returns the RoIs of one image, with all columns of the cache. Raises KeyError for an unknown id."""
        if image_id not in self._position:
            raise KeyError(f"{self.url}: no image {image_id}")
        return self.image_at(self._position[image_id])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of header, class table, image table and the content of every image."""
        return fingerprint(self.header, self.classes, self.images.drop(columns="roi_count"), self.digests)

    def owners(self, position: int) -> np.ndarray:
        """Returns the stored image positions of one image's rows, (R,) int32."""
        return self._owners.rows(self._packing.image_rows(position, position + 1))

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """Fields of `RoIs` that the cache stores → their shape after R."""
        return {field: column.row_shape for field, column in self.columns.items()}

    def check_shards(self) -> None:
        """Raises CacheError if a shard is missing."""
        for column in self.columns.values():
            column.check_shards(*self._packing.ranges())

    def read(self, field: str) -> np.ndarray:
        """Reads one field of all RoIs, packed in image order: (offsets[-1], …). See `take` for logits."""
        total = int(self.offsets[-1])
        if self._derives(field):
            return self.take(field, np.arange(total))
        column = self._column(field)
        out = np.empty((total, *column.row_shape), column.dtype)
        for begin in range(0, total, ROWS_AT_ONCE):
            packed = np.arange(begin, min(begin + ROWS_AT_ONCE, total))
            column.read(self._packing.stored_rows(packed), out[begin : begin + ROWS_AT_ONCE])
        return from_stored(field, out)

    def take(self, field: str, rows: np.ndarray) -> np.ndarray:
        """Reads one field of the given packed rows, in any order and with repeats: (len(rows), …).

        Logits that the cache leaves out are computed from the features, float32.
        """
        if self._derives(field):
            return self._upper_layers.logits(self.take("features", rows))
        column, rows = self._column(field), np.asarray(rows, np.int64)
        if rows.size and not (0 <= rows.min() and rows.max() < self.offsets[-1]):
            raise IndexError(f"{self.url}: rows {rows.min()}…{rows.max()}, the cache has {self.offsets[-1]} RoIs")
        wanted, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        out = np.empty((len(rows), *column.row_shape), column.dtype)
        column.read(self._packing.stored_rows(wanted), out, first)
        repeats = np.flatnonzero(first[inverse] != np.arange(len(rows)))
        out[repeats] = out[first[inverse[repeats]]]
        return from_stored(field, out)

    def without_images(self, image_ids: np.ndarray) -> RoICache:
        """Returns the cache of the other images, a view with a fingerprint of its own; nothing is copied."""
        stored = np.arange(len(self.digests)) if isinstance(self._kept, slice) else self._kept
        kept = stored[~np.isin(self._image_table["image_id"], image_ids)]
        return self if len(kept) == len(self) else RoICache(self._group, self.url, kept)

    def fc_layers(self, stage: int = 0) -> Layers:
        """Returns the detector's fully connected layers of a stage; [] if the cache has none."""
        return read_fc_layers(self._group, stage, self.url)

    def _derives(self, field: str) -> bool:
        return field == "logits" and field not in self.columns and self.level == "hidden"

    @cached_property
    def projections(self) -> list[Projection]:
        """Each stage's projection of pooled features, [] if there are none."""
        return read_projections(self._group, self.url)

    @cached_property
    def _upper_layers(self) -> UpperLayers:
        return UpperLayers.read(self._group, self.url)

    @cached_property
    def _owners(self) -> StoredColumn:
        return open_owners(self._group, self.url)

    def stored_bytes(self) -> int:
        """Returns the size of the RoI arrays in their store."""
        return sum(column.stored_bytes() for column in self.columns.values())

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.url, self._kept)

    def _column(self, field: str) -> StoredColumn:
        if field not in self.columns:
            raise CacheError(f"{self.url}: has no {field} (level {self.level!r}); it has {', '.join(self.columns)}")
        return self.columns[field]

    def _read_small_columns(self, block: int) -> dict[str, np.ndarray]:
        """Reads the columns of few bytes per row, for all images of a block."""
        small = [field for field, column in self.columns.items() if column.row_bytes <= SMALL_ROW_BYTES]
        return self._read_images(small, *block_slice(block).indices(len(self))[:2])

    def _read_images(self, fields: Iterable[str], first: int, stop: int) -> dict[str, np.ndarray]:
        """Reads fields of consecutive images, packed."""
        rows = self._packing.image_rows(first, stop)
        return {field: from_stored(field, self.columns[field].rows(rows)) for field in fields}


def _reopen(url: str, kept: np.ndarray | slice) -> RoICache:
    return RoICache(open_group(url, "r"), url, kept)
