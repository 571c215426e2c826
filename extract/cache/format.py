"""Format 1 of RoI caches: its constants, columns, header and blocks. `docs/format.md` is the specification."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from extract.rois import RoIs
from extract.utils.errors import one_line, other_version

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "tailcal-roi-cache"
VERSION = 1
LEVELS = {"pooled": 5, "hidden": 3, "embedding": 3, "logits": None}
"""Feature level → number of axes of `features`, (R, S, C, P, P) or (R, S, C); None where they are not stored. Features
of a level follow from those of every level before it."""
SPLITS = ("train", "val")
IMAGES_PER_BLOCK = 16

Layers = Sequence[tuple[np.ndarray, np.ndarray]]
"""Fully connected layers as (weight (out, in), bias (out,)) float32, ReLU between them, the classifier last."""


class Projection(NamedTuple):
    """The projection of one stage's flattened pooled features x: `directions @ (x - center)`.

    Attributes:
        directions: (Q, D) float32, orthonormal rows.
        center: (D,) float32.
    """

    directions: np.ndarray
    center: np.ndarray


def layers_above(level: str, layers: Layers) -> Layers:
    """Returns those of a stage's fully connected layers that features of a level enter; [] at level "logits".

    Hidden features enter the second layer, after a ReLU.
    """
    first = {"pooled": 0, "hidden": 1, "embedding": -1}.get(level, len(layers))
    return layers[first:]


class CacheError(ValueError):
    """A cache that is missing, unfinished, damaged or of the wrong kind."""


@contextmanager
def naming_damage(url: str) -> Iterator[None]:
    """Turns what is raised within the block for damaged metadata into a CacheError that names the cache."""
    try:
        yield
    except CacheError as error:
        if url in str(error):
            raise
        raise CacheError(f"{url}: {error}") from None
    except (OSError, ImportError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, ArithmeticError) as error:
        raise CacheError(f"{url}: its metadata are damaged: {one_line(error)}") from error


@dataclass(frozen=True)
class Column:
    """How a cache stores one field of `RoIs`.

    Attributes:
        name: of the Zarr array.
        dtype: of the stored values.
        axes: names of the axes after `roi`.
        compressed: by Zstandard. Features and logits are not: such half floats hardly compress and are read faster raw.
    """

    name: str
    dtype: str
    axes: tuple[str, ...] = ()
    compressed: bool = True


COLUMNS = {
    "proposals": Column("proposal", "float32", ("stage", "xyxy")),
    "boxes": Column("box", "float32", ("class", "xyxy")),
    "logits": Column("logit", "float16", ("stage", "class_or_background"), compressed=False),
    "objectness": Column("objectness", "float32"),
    "features": Column("feature", "float16", ("stage", "channel", "y", "x"), compressed=False),
    "labels": Column("label", "int32", ("stage",)),
    "ious": Column("iou", "float32", ("stage",)),
    "gt_ids": Column("gt_id", "int64", ("stage",)),
    "is_gt": Column("is_gt", "uint8"),
    "masks": Column("mask", "uint8", ("mask_y", "mask_x")),
}
OWNER_COLUMN = Column("image", "int32")
"""Position of each row's image; not a field of `RoIs`."""
IMAGE_COLUMNS = ("image_id", "height", "width", "flipped", "roi_count")
OPTIONAL = frozenset({"features", "masks"})
"""Fields that are None where a cache has none. At level "hidden" logits may be absent as well, but never None."""
FILL = {"f": np.nan, "i": -2, "u": 255}
"""Kind of dtype → value of unused rows. Zarr does not store chunks of fill values only, and a missing chunk must mean
damage. Therefore no chunk of valid data holds the fill value only: `is_gt` is not bool, and masks end at `MASK_MAX`."""
MASK_MAX = 254


@dataclass(frozen=True)
class Header:
    """A cache's metadata, fixed when the cache is created.

    Attributes:
        split: "train" (ground truth, its matches and a sample of background) or "val" (the top proposals).
        level: feature level, one of `LEVELS`.
        stages: matching IoU of each stage of the box head.
        detector: the detector's description (name, framework, weights_sha256, stage_average …), JSON values.
        provenance: what else the content depends on: configuration, sha256 of the annotations, library versions.
    """

    split: str
    level: str
    stages: tuple[float, ...]
    detector: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raises CacheError for an unknown split or feature level."""
        if self.split not in SPLITS:
            raise CacheError(f"split {self.split!r}, expected {' or '.join(map(repr, SPLITS))}")
        if self.level not in LEVELS:
            raise CacheError(f"level {self.level!r}, expected one of {', '.join(LEVELS)}")

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Header:
        """Returns the header in the attributes of a cache's group."""
        values = {field.name: attributes[field.name] for field in fields(cls)}
        return cls(**{**values, "stages": tuple(values["stages"])})

    def check_json(self, url: str) -> None:
        """Raises CacheError naming `url` and the field whose value JSON does not have.

        Python writes NaN and infinities as bare words, with which other readers of Zarr reject the whole cache.
        """
        _check_json(asdict(self), url)


def _check_json(value: object, field: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_json(inner, f"{field}: {key}")
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            _check_json(inner, f"{field}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise CacheError(f"{field} is {value}, expected a finite number (JSON has no other)")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise CacheError(f"{field} is of type {type(value).__name__}, expected a value that JSON has")


def open_group(url: str, mode: Literal["r", "r+"]) -> zarr.Group:
    """Opens the Zarr group of a cache, finished or not. Raises FileNotFoundError or CacheError naming `url`."""
    if "://" not in url and Path(url).is_file():
        raise CacheError(f"{url}: is a file, a RoI cache is a folder")
    try:
        group = zarr.open_group(url, mode=mode)
    except (GroupNotFoundError, FileNotFoundError):
        raise FileNotFoundError(f"{url}: no RoI cache there") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CacheError(f"{url}/zarr.json: damaged: {one_line(error)}") from None
    if group.attrs.get("creating"):
        raise FileNotFoundError(f"{url}: no RoI cache there, only the beginning of one")
    if group.attrs.get("format") != FORMAT:
        raise CacheError(f"{url}: format {group.attrs.get('format')!r}, expected {FORMAT!r}")
    if (version := group.attrs.get("version")) != VERSION:
        raise CacheError(f"{url}: format {other_version(version, VERSION)}")
    needed = {"complete", "images_per_block", "rows_per_block", *(field.name for field in fields(Header))}
    if missing := needed - group.attrs.keys():
        raise CacheError(f"{url}/zarr.json: damaged: has no {', '.join(sorted(missing))}")
    return group


def fingerprint(header: Header, classes: pd.DataFrame, images: pd.DataFrame, digests: np.ndarray) -> str:
    """Returns the sha256 of header, class table, image table and the images' digests (N,) int64."""
    digest = hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode())
    digest.update(classes.to_csv().encode())
    digest.update(images.to_csv(index=False).encode())
    digest.update(digests.astype("<i8").tobytes())
    return digest.hexdigest()


def num_blocks(images: int) -> int:
    """Returns the number of blocks of this many images."""
    return -(-images // IMAGES_PER_BLOCK)


def block_slice(block: int) -> slice:
    """Returns the positions of a block's images."""
    return slice(block * IMAGES_PER_BLOCK, (block + 1) * IMAGES_PER_BLOCK)


def row_shapes(template: RoIs, logits: bool = True) -> dict[str, tuple[int, ...]]:
    """Returns the fields that a cache of RoIs like `template` stores → their shape after R; `logits` is one of them."""
    names = [field for field in COLUMNS if logits or field != "logits"]
    arrays = {field: getattr(template, field) for field in names}
    return {field: tuple(array.shape[1:]) for field, array in arrays.items() if array is not None}


def row_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Returns the bytes of one RoI before compression, of fields with these `row_shapes`."""
    return sum(math.prod(shape) * np.dtype(COLUMNS[field].dtype).itemsize for field, shape in shapes.items())
