"""What is stored where in a RoI cache; `docs/format.md` says it in words.

`layout`, `shards` (writing), `cache` (reading) and `directshards` are the only modules that know Zarr.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from extract.rois import RoIs

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "tailcal-roi-cache"
VERSION = 1
LEVELS = {"pooled": 5, "embedding": 3, "logits": None}
"""What `features` may hold → their number of axes, (R, S, C, P, P) or (R, S, C)."""
SPLITS = ("train", "val")
IMAGES_PER_BLOCK = 16
# A pooled feature of 256 channels is a chunk by itself. Training takes half of an image's RoIs: of chunks of 16 it
# reads two bytes for each that it wants (four, with what the system reads ahead), of single ones hardly more than one.
# All in a row are read as fast; what chunks this small cost Zarr, `directshards` avoids.
CHUNK_BYTES = 32 * 1024
MAX_CHUNK_ROWS = 4096
SHARD_BYTES = 128 * 1024 * 1024

Layers = Sequence[tuple[np.ndarray, np.ndarray]]
"""Fully connected layers as (weight (out, in), bias (out,)) float32, ReLU between them, the classifier last."""


class CacheError(ValueError):
    """A cache that is missing, unfinished, damaged or not what was asked for."""


@dataclass(frozen=True)
class Column:
    """How one field of `RoIs` is stored: array name, dtype, compressed or not, names of the axes behind `roi`.

    Features and logits are stored raw: half floats of this kind hardly compress, and raw bytes read faster.
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
IMAGE_COLUMNS = ("image_id", "height", "width", "flipped", "roi_count")
OPTIONAL = frozenset({"features", "masks"})
FILL = {"f": np.nan, "i": -2, "u": 255}
"""Value of unused rows by kind of dtype. No chunk of real data holds it alone: Zarr leaves out chunks that are all
fill, and a chunk left out must mean a chunk lost. So `is_gt` is not stored as bool, and masks end at `MASK_MAX`."""
MASK_MAX = FILL["u"] - 1
HALF_INFINITY = 0x7C00
HALVES_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Header:
    """What a cache says of itself, fixed when it is created.

    Attributes:
        split: "train" (ground truth, its matches and a sample of background) or "val" (the top proposals).
        level: "pooled", "embedding" or "logits": what `features` hold.
        stages: matching IoU of each stage of the box head.
        detector: the detector's description (name, framework, weights_sha256, stage_average …).
        provenance: what else made the cache: configuration, annotation file's sha256, library versions.
    """

    split: str
    level: str
    stages: tuple[float, ...]
    detector: Mapping[str, object]
    provenance: Mapping[str, object]

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise CacheError(f"split {self.split!r}, expected {' or '.join(map(repr, SPLITS))}")
        if self.level not in LEVELS:
            raise CacheError(f"level {self.level!r}, expected one of {', '.join(LEVELS)}")

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, object]) -> Header:
        """The header among the attributes of a cache's group."""
        values = {field.name: attributes[field.name] for field in fields(cls)}
        return cls(**{**values, "stages": tuple(values["stages"])})


def open_group(url: str, mode: str) -> zarr.Group:
    """The Zarr group of a cache, finished or not. Raises FileNotFoundError or CacheError naming `url`."""
    if "://" not in url and Path(url).is_file():
        raise CacheError(f"{url}: is a file, a RoI cache is a folder")
    try:
        group = zarr.open_group(url, mode=mode)
    except (GroupNotFoundError, FileNotFoundError):
        raise FileNotFoundError(f"{url}: no RoI cache there") from None
    except ValueError as error:
        raise CacheError(f"{url}/zarr.json: damaged: {error}") from None
    if group.attrs.get("creating"):
        raise FileNotFoundError(f"{url}: no RoI cache there, only the beginning of one")
    if group.attrs.get("format") != FORMAT:
        raise CacheError(f"{url}: format {group.attrs.get('format')!r}, expected {FORMAT!r}")
    if group.attrs["version"] != VERSION:
        raise CacheError(f"{url}: format version {group.attrs['version']}, this library reads {VERSION}")
    return group


def fingerprint(header: Header, classes: pd.DataFrame, images: pd.DataFrame, digests: np.ndarray) -> str:
    """sha256 of header, class table, image table and the images' content (N,) int64 from `image_digest`."""
    digest = hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode())
    digest.update(classes.to_csv().encode())
    digest.update(images.to_csv(index=False).encode())
    digest.update(digests.astype("<i8").tobytes())
    return digest.hexdigest()


def image_digest(arrays: Sequence[np.ndarray]) -> int:
    """The first eight bytes of the sha256 of one image's arrays as they are stored, as a signed integer."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def num_blocks(images: int) -> int:
    """Blocks that so many images fill."""
    return -(-images // IMAGES_PER_BLOCK)


def block_slice(block: int) -> slice:
    """The images of a block."""
    return slice(block * IMAGES_PER_BLOCK, (block + 1) * IMAGES_PER_BLOCK)


def row_bytes(template: RoIs) -> int:
    """Bytes that one RoI takes on disk before compression."""
    arrays = {field: getattr(template, field) for field in COLUMNS}
    return sum(
        int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(COLUMNS[field].dtype).itemsize
        for field, array in arrays.items()
        if array is not None
    )


def check_values(rois: RoIs) -> None:
    """Raises CacheError for labels outside -1…K and for boxes whose corners are the wrong way round."""
    if rois.labels.size and not (rois.labels.min() >= -1 and rois.labels.max() <= rois.num_classes):
        raise CacheError(f"labels span {rois.labels.min()}…{rois.labels.max()}, expected -1…{rois.num_classes}")
    for field in ("proposals", "boxes"):
        boxes = getattr(rois, field)
        inverted = (boxes[..., :2] > boxes[..., 2:]).any(axis=tuple(range(1, boxes.ndim)))
        if inverted.any():
            roi = int(np.argmax(inverted))
            raise CacheError(f"{field} of RoI {roi} are not xyxy: {boxes[roi].ravel()[:4].tolist()}")


def stored(rois: RoIs, field: str, column: Column, shape: tuple[int, ...]) -> np.ndarray:
    """One image's values of a field as they are stored, not copied if they are so already.

    Raises CacheError naming the field.
    """
    values = getattr(rois, field)
    if values is None or values.shape[1:] != shape:
        found = None if values is None else values.shape[1:]
        raise CacheError(f"{field} are {found} per RoI, the cache stores {shape}")
    if (values.dtype.kind == "f") != (column.dtype.startswith("float")):
        raise CacheError(f"{field} are {values.dtype}, the cache stores {column.dtype}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(values, column.dtype)
    if field == "masks":
        converted = np.minimum(converted, MASK_MAX)
    if converted.dtype.kind == "f" and not all_finite(converted):
        roi = int(np.argwhere(~np.isfinite(converted))[0][0])
        raise CacheError(
            f"{field} of RoI {roi} are not finite as {column.dtype} (largest magnitude {np.abs(values[roi]).max()})"
        )
    return converted


def all_finite(values: np.ndarray) -> bool:
    """Whether no float of a contiguous array is infinite or NaN."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # Half floats have no arithmetic of their own. As integers, those whose exponent is all ones are the largest
    # of their sign: two maxima find them, in parts that stay in the processor's cache from one to the other.
    bits = values.reshape(-1)
    return all(
        part.view(np.int16).max() < HALF_INFINITY and part.view(np.uint16).max() < HALF_INFINITY + 0x8000
        for part in (bits[begin : begin + HALVES_AT_ONCE] for begin in range(0, len(bits), HALVES_AT_ONCE))
    )
