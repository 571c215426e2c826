"""Values of RoIs as a cache stores them: conversion, checks and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from extract.cache.format import MASK_MAX, CacheError, Column
from extract.rois import RoIs

HALF_INFINITY = 0x7C00
HALVES_AT_ONCE = 1 << 18


def check_values(rois: RoIs) -> None:
    """Raises CacheError for labels outside -1…K and for boxes with x1 > x2 or y1 > y2."""
    if rois.labels.size and not (rois.labels.min() >= -1 and rois.labels.max() <= rois.num_classes):
        raise CacheError(f"labels span {rois.labels.min()}…{rois.labels.max()}, expected -1…{rois.num_classes}")
    for field in ("proposals", "boxes"):
        boxes = getattr(rois, field)
        inverted = (boxes[..., :2] > boxes[..., 2:]).any(axis=tuple(range(1, boxes.ndim)))
        if inverted.any():
            roi = int(np.argmax(inverted))
            raise CacheError(f"{field} of RoI {roi} are not xyxy: {boxes[roi].ravel()[:4].tolist()}")


def check_stored(rois: RoIs, fields: Iterable[str]) -> None:
    """Raises CacheError naming a field of an image read from a cache that is not finite, or fails `check_values`."""
    for field in fields:
        values = getattr(rois, field)
        if values.dtype.kind == "f" and not all_finite(values):
            raise CacheError(f"{field} hold values that are not finite")
    check_values(rois)


def to_stored(rois: RoIs, field: str, column: Column, shape: tuple[int, ...]) -> np.ndarray:
    """Converts one field of an image to the column's dtype; returns the same array if it has that dtype already.

    Raises CacheError naming the field if its shape after R is not `shape` or a value is not finite.
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


def from_stored(field: str, values: np.ndarray) -> np.ndarray:
    """Converts stored values of a field to the dtype that `RoIs` has."""
    return values.astype(bool) if field == "is_gt" else values


def all_finite(values: np.ndarray) -> bool:
    """Returns whether no float of a contiguous array is infinite or NaN."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # NumPy has no fast half-float arithmetic. As integers, infinities and NaN are the largest values of each sign, so
    # two maxima find them; each part stays in the CPU's cache between the two.
    bits = values.reshape(-1)
    parts = (bits[begin : begin + HALVES_AT_ONCE] for begin in range(0, len(bits), HALVES_AT_ONCE))
    return all(
        part.view(np.int16).max() < HALF_INFINITY and part.view(np.uint16).max() < HALF_INFINITY + 0x8000
        for part in parts
    )


def image_digest(arrays: Sequence[np.ndarray]) -> int:
    """Returns the first eight bytes of the sha256 of one image's stored arrays, as a signed integer."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest()[:8], "little", signed=True)
