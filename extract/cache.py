"""Reading RoI caches."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import zarr

from extract.classes import check_classes
from extract.layout import COLUMNS, OPTIONAL, CacheError, Header, Layers, fingerprint, open_group
from extract.rois import RoIs

IMAGE_COLUMNS = ("image_id", "height", "width", "flipped", "roi_count")


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
        self.header = header = Header.of(group.attrs.asdict())
        self.split, self.level, self.stages = header.split, header.level, header.stages
        self.detector, self.provenance = header.detector, header.provenance
        self._group = group
        self._arrays = {field: group[c.name] for field, c in COLUMNS.items() if c.name in group}
        missing = COLUMNS.keys() - self._arrays.keys() - OPTIONAL
        if missing:
            raise CacheError(f"{url}: has no {', '.join(sorted(COLUMNS[field].name for field in missing))}")
        self.classes = check_classes(pd.DataFrame(self._class_table()), url)
        self.images = pd.DataFrame({name: self._table(f"images/{name}") for name in IMAGE_COLUMNS})
        self.offsets = np.concatenate([[0], np.cumsum(self.images["roi_count"].to_numpy(np.int64))])
        self._starts = self._table("images/roi_start")
        if (self._starts[1:] < self._starts[:-1] + np.diff(self.offsets)[:-1]).any():
            raise CacheError(f"{url}/images: the ranges of roi_start and roi_count overlap")
        self._position = {int(image_id): i for i, image_id in enumerate(self.images["image_id"])}
        self._digests = self._table("images/digest")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int | slice) -> RoIs | list[RoIs]:
        """The RoIs of the image at a position of `images`, or of several; `image` finds them by id."""
        if isinstance(position, slice):
            return [self[i] for i in range(len(self))[position]]
        row = self.images.iloc[position]
        rows = self._rows(range(len(self))[position])
        arrays = {field: self._get(field, rows) if field in self._arrays else None for field in COLUMNS}
        return RoIs(
            image_id=int(row["image_id"]),
            height=int(row["height"]),
            width=int(row["width"]),
            flipped=bool(row["flipped"]),
            **arrays,
        )

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
        array = self._arrays[field]
        dtype = bool if field == "is_gt" else array.dtype
        packed = np.empty((int(self.offsets[-1]), *array.shape[1:]), dtype)
        for first, last in self._runs():
            rows = slice(int(self._starts[first]), self._rows(last).stop)
            packed[self.offsets[first] : self.offsets[last + 1]] = self._get(field, rows)
        return packed

    def take(self, field: str, rows: np.ndarray) -> np.ndarray:
        """One field of the given packed rows, in any order and with repeats: (len(rows), …)."""
        self._need(field)
        rows = np.asarray(rows, np.int64)
        if rows.size and not (0 <= rows.min() and rows.max() < self.offsets[-1]):
            raise IndexError(f"{self.url}: rows {rows.min()}…{rows.max()}, the cache has {self.offsets[-1]} RoIs")
        wanted, inverse = np.unique(rows, return_inverse=True)
        owner = np.searchsorted(self.offsets, wanted, side="right") - 1
        stored = self._starts[owner] + wanted - self.offsets[owner]
        return self._get(field, (stored,), "get_orthogonal_selection")[inverse]

    def head(self, stage: int = 0) -> Layers:
        """The detector's own fully connected layers of a stage; empty where the cache has none."""
        name = f"detector/stage_{stage}"
        if name not in self._group:
            return []
        depth = sum(key.startswith("weight_") for key in self._group[name].array_keys())
        return [(self._table(f"{name}/weight_{d}"), self._table(f"{name}/bias_{d}")) for d in range(depth)]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<10} {text}" for name, text in self._summary())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in self._summary()
        )
        return f"<table>{cells}</table>"

    def _summary(self) -> list[tuple[str, str]]:
        labels = self.read("labels")[:, 0]
        foreground = (labels >= 0) & (labels < self.num_classes)
        features = self.fields.get("features")
        return [
            ("RoI cache", f"{self.url} ({self.split})"),
            ("images", f"{len(self):,} ({int(self.images['flipped'].sum()):,} flipped)"),
            ("RoIs", f"{int(self.offsets[-1]):,} ({int(foreground.sum()):,} foreground, {len(self.stages)} stage(s))"),
            ("classes", f"{self.num_classes:,} ({len(np.unique(labels[foreground])):,} of them in it)"),
            ("level", f"{self.level}" + (f", features {features[1:]} float16" if features else "")),
            (
                "detector",
                f"{self.detector.get('name', 'unknown')} ({self.detector.get('framework', 'unknown')})",
            ),
            ("columns", ", ".join(self.fields)),
            ("on disk", f"{self._stored_bytes() / 1e6:,.1f} MB"),
        ]

    def _stored_bytes(self) -> int:
        return sum(array.nbytes_stored() for array in self._arrays.values())

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

    def _rows(self, position: int) -> slice:
        start = int(self._starts[position])
        return slice(start, start + int(self.offsets[position + 1] - self.offsets[position]))

    def _runs(self) -> list[tuple[int, int]]:
        """First and last image of each run of images whose rows follow one another."""
        if not len(self):
            return []
        counts = np.diff(self.offsets)
        breaks = np.flatnonzero(self._starts[1:] != self._starts[:-1] + counts[:-1])
        return list(zip([0, *(breaks + 1)], [*breaks, len(self) - 1], strict=True))

    def _get(self, field: str, rows: slice | tuple[np.ndarray], how: str = "__getitem__") -> np.ndarray:
        """Reads rows, turning what Zarr says of a damaged shard into a line that names the array."""
        try:
            values = getattr(self._arrays[field], how)(rows)
            return values.astype(bool) if field == "is_gt" else values
        except (ValueError, OSError, RuntimeError) as error:
            raise CacheError(f"{self.url}/{COLUMNS[field].name}: damaged shard: {error}") from error

    def _check_shards(self) -> None:
        """A missing shard reads as fill values, so it must be found before anything is read."""
        counts = np.diff(self.offsets)
        for field, array in self._arrays.items():
            rows, chunk_rows = array.shards[0], array.chunks[0]
            occupied = [
                np.arange(s // rows, (s + n - 1) // rows + 1) for s, n in zip(self._starts, counts, strict=True) if n
            ]
            shards = len(np.unique(np.concatenate(occupied))) if occupied else 0
            found = array.nchunks_initialized * chunk_rows // rows
            if found < shards:
                raise CacheError(
                    f"{self.url}/{COLUMNS[field].name}: {found} shards, the manifest needs {shards}; extract it again"
                )
