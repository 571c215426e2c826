"""Reading RoI caches."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache

import numpy as np
import zarr

from extract.cache.format import (
    COLUMNS,
    IMAGE_COLUMNS,
    IMAGES_PER_BLOCK,
    OPTIONAL,
    CacheError,
    Header,
    Layers,
    block_slice,
    fingerprint,
    open_group,
)
from extract.cache.shard_io import ShardedArray
from extract.cache.summary import summary
from extract.data.classes import check_classes
from extract.rois import RoIs

ROWS_AT_ONCE = 1 << 20
LIGHT_BYTES = 64
"""Up to here a field's rows are read for a block of images at once."""
LIGHT_BLOCKS = 4


def open_cache(url: str) -> RoICache:
    """Opens a finished cache at a path or fsspec URL.

    Raises FileNotFoundError where there is none, CacheError for one that is unfinished or lacks shards.
    """
    url = str(url)
    group = open_group(url, "r")
    if not group.attrs["complete"]:
        counts = group["progress"][:, 0]
        raise CacheError(
            f"{url}: is not finished, {(counts >= 0).sum()} of {len(counts)} images are done; "
            "the command that began it resumes it"
        )
    cache = RoICache(group, url)
    cache._check_shards()
    return cache


class RoICache(Sequence):
    """A finished cache, read-only: a sequence of `RoIs`, one an image; made by `open_cache`.

    Attributes:
        url: where it lies.
        classes: DataFrame indexed by contiguous class: category_id, name, frequency, image_count, instance_count,
            the counts being those of the training set.
        images: DataFrame in stored order: image_id, height, width, flipped, roi_count.
        stages: matching IoU of each stage, length S.
        header: what the cache says of itself; its parts are at hand as split, level, stages, detector, provenance.
        offsets: (N+1,) int64; image i owns the packed rows `offsets[i]:offsets[i+1]` of `read` and `take`.
    """

    def __init__(self, group: zarr.Group, url: str):
        import pandas as pd

        self.url = url
        self.header = header = Header.from_attributes(group.attrs.asdict())
        self.split, self.level, self.stages = header.split, header.level, header.stages
        self.detector, self.provenance = header.detector, header.provenance
        self._group = group
        self._arrays = {field: group[c.name] for field, c in COLUMNS.items() if c.name in group}
        missing = COLUMNS.keys() - self._arrays.keys() - OPTIONAL
        if missing:
            raise CacheError(f"{url}: has no {', '.join(sorted(COLUMNS[field].name for field in missing))}")
        self.classes = check_classes(pd.DataFrame(self._class_table()), url)
        self._image_table = {name: self._table(f"images/{name}") for name in IMAGE_COLUMNS}
        self.images = pd.DataFrame(self._image_table)
        self.offsets = np.concatenate([[0], np.cumsum(self.images["roi_count"].to_numpy(np.int64))])
        self._starts = self._table("images/roi_start")
        if (self._starts[1:] < self._starts[:-1] + np.diff(self.offsets)[:-1]).any():
            raise CacheError(f"{url}/images: the ranges of roi_start and roi_count overlap")
        self._direct = {field: ShardedArray.from_zarr(array, url) for field, array in self._arrays.items()}
        # Bounded; several threads may ask at once.
        self._light = lru_cache(LIGHT_BLOCKS)(self._read_light)
        self._position = {int(image_id): i for i, image_id in enumerate(self.images["image_id"])}
        self._digests = self._table("images/digest")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int | slice) -> RoIs | list[RoIs]:
        """The RoIs of the image at a position of `images`, or of several; `image` finds them by id."""
        if isinstance(position, slice):
            return [self[i] for i in range(len(self))[position]]
        return self.image_at(position)

    def image_at(self, position: int, fields: Collection[str] | None = None) -> RoIs:
        """The RoIs of the image at a position of `images`, without the optional columns that `fields` does not name.

        `features` and `masks` are optional and heavy; every other field is read in any case. None reads all.
        Several threads may read at once.
        """
        if unknown := set(fields or ()) - COLUMNS.keys():
            raise CacheError(f"{self.url}: RoIs have no {', '.join(sorted(unknown))}; they have {', '.join(COLUMNS)}")
        position = range(len(self))[position]
        block = position // IMAGES_PER_BLOCK
        own = slice(*(self.offsets[position : position + 2] - self.offsets[block * IMAGES_PER_BLOCK]))
        arrays = {field: values[own].copy() for field, values in self._light(block).items()}
        heavy = self._arrays.keys() - arrays.keys() - (OPTIONAL - set(OPTIONAL if fields is None else fields))
        arrays = dict.fromkeys(COLUMNS) | arrays | self._of_images(heavy, position, position + 1)
        values = {name: self._image_table[name][position].item() for name in IMAGE_COLUMNS[:-1]}
        return RoIs(**values, **arrays)

    def __reduce__(self) -> tuple[object, ...]:
        return open_cache, (self.url,)

    def image(self, image_id: int) -> RoIs:
        """The RoIs of one image, with every column that the cache has. Raises KeyError for an unknown id."""
        if image_id not in self._position:
            raise KeyError(f"{self.url}: no image {image_id}")
        return self[self._position[image_id]]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over header, class table, image table and the content of every image."""
        return fingerprint(self.header, self.classes, self.images.drop(columns="roi_count"), self._digests)

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.classes)

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """Fields of `RoIs` that the cache has → their shape behind R."""
        return {field: array.shape[1:] for field, array in self._arrays.items()}

    def read(self, field: str) -> np.ndarray:
        """One field of all RoIs, packed in image order: (offsets[-1], …)."""
        self._need(field)
        total = int(self.offsets[-1])
        out = np.empty((total, *self.fields[field]), self._arrays[field].dtype)
        for begin in range(0, total, ROWS_AT_ONCE):
            packed = np.arange(begin, min(begin + ROWS_AT_ONCE, total))
            self._fill(field, self._stored(packed), out[begin : begin + ROWS_AT_ONCE])
        return _typed(field, out)

    def take(self, field: str, rows: np.ndarray) -> np.ndarray:
        """One field of the given packed rows, in any order and with repeats: (len(rows), …)."""
        self._need(field)
        rows = np.asarray(rows, np.int64)
        if rows.size and not (0 <= rows.min() and rows.max() < self.offsets[-1]):
            raise IndexError(f"{self.url}: rows {rows.min()}…{rows.max()}, the cache has {self.offsets[-1]} RoIs")
        wanted, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        out = np.empty((len(rows), *self.fields[field]), self._arrays[field].dtype)
        self._fill(field, self._stored(wanted), out, first)
        repeats = np.flatnonzero(first[inverse] != np.arange(len(rows)))
        out[repeats] = out[first[inverse[repeats]]]
        return _typed(field, out)

    def fc_layers(self, stage: int = 0) -> Layers:
        """The detector's own fully connected layers of a stage; empty where the cache has none."""
        name = f"detector/stage_{stage}"
        if name not in self._group:
            return []
        depth = sum(key.startswith("weight_") for key in self._group[name].array_keys())
        return [(self._table(f"{name}/weight_{d}"), self._table(f"{name}/bias_{d}")) for d in range(depth)]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<10} {text}" for name, text in summary(self))

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in summary(self)
        )
        return f"<table>{cells}</table>"

    def stored_bytes(self) -> int:
        """Size of the RoI arrays on disk."""
        direct = self._direct
        return sum(direct[f].stored_bytes() if direct[f] else a.nbytes_stored() for f, a in self._arrays.items())

    def _need(self, field: str) -> None:
        if field not in self._arrays:
            raise CacheError(f"{self.url}: has no {field} (level {self.level!r}); it has {', '.join(self._arrays)}")

    def _table(self, name: str) -> np.ndarray:
        """A small array, whole."""
        try:
            array = self._group[name]
            if array.nchunks_initialized < array.nchunks:
                raise CacheError(f"{self.url}/{name}: its chunk is missing")
            return array[:]
        except KeyError:
            raise CacheError(f"{self.url}: has no {name}") from None
        except CacheError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            raise CacheError(f"{self.url}/{name}: damaged: {error}") from None

    def _class_table(self) -> dict[str, object]:
        numbers = {n: self._table(f"classes/{n}") for n in ("category_id", "image_count", "instance_count")}
        text = self._group["classes"].attrs
        return numbers | {"name": text["name"], "frequency": list(text["frequency"])}

    def _stored(self, packed: np.ndarray) -> np.ndarray:
        """The stored rows of ascending packed ones."""
        owner = np.searchsorted(self.offsets, packed, side="right") - 1
        return self._starts[owner] + packed - self.offsets[owner]

    def _read_light(self, block: int) -> dict[str, np.ndarray]:
        """The fields of few bytes of a block's images: one image's alone take as long to read."""
        light = [f for f, a in self._arrays.items() if math.prod(a.shape[1:]) * a.dtype.itemsize <= LIGHT_BYTES]
        return self._of_images(light, *block_slice(block).indices(len(self))[:2])

    def _of_images(self, fields: Iterable[str], first: int, stop: int) -> dict[str, np.ndarray]:
        """Fields of some consecutive images, packed."""
        rows = np.repeat(self._starts[first:stop] - self.offsets[first:stop], np.diff(self.offsets[first : stop + 1]))
        rows += np.arange(self.offsets[first], self.offsets[stop])
        return {field: self._rows(field, rows) for field in fields}

    def _rows(self, field: str, rows: np.ndarray) -> np.ndarray:
        """Stored rows, ascending and without repeats."""
        out = np.empty((len(rows), *self.fields[field]), self._arrays[field].dtype)
        self._fill(field, rows, out)
        return _typed(field, out)

    def _fill(self, field: str, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None = None) -> None:
        """Reads stored rows, ascending and without repeats, to `out[places]`; names the array if it is damaged."""
        array, direct = self._arrays[field], self._direct[field]
        try:
            if direct:
                direct.read(rows, out, places)
            else:
                out[slice(None) if places is None else places] = array.get_orthogonal_selection((rows,))
        except (ValueError, OSError, RuntimeError) as error:
            raise CacheError(f"{self.url}/{COLUMNS[field].name}: damaged shard: {error}") from error

    def _check_shards(self) -> None:
        """A missing shard reads as fill values, so it must be found before anything is read."""
        filled = np.diff(self.offsets) > 0
        starts, ends = self._starts[filled], self._starts[filled] + np.diff(self.offsets)[filled]
        for field, array in self._arrays.items():
            rows = array.shards[0]
            change = np.zeros(array.shape[0] // rows + 1, np.int64)
            np.add.at(change, starts // rows, 1)
            np.add.at(change, (ends - 1) // rows + 1, -1)
            needed = np.flatnonzero(np.cumsum(change))
            if self._direct[field]:
                found = len(needed) - self._direct[field].missing(needed)
            else:
                found = array.nchunks_initialized * array.chunks[0] // rows
            if found < len(needed):
                raise CacheError(
                    f"{self.url}/{COLUMNS[field].name}: {found} shards, the manifest needs {len(needed)}; "
                    "extract it again"
                )


def _typed(field: str, values: np.ndarray) -> np.ndarray:
    """Values as `RoIs` have them."""
    return values.astype(bool) if field == "is_gt" else values
