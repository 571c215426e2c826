"""The manifest of a finished cache: what belongs to it, with checksums, so that what is lost or swapped is found.

A chunk's own checksum tells that the chunk is damaged, but not that its file is another array's, another cache's or an
older one. Caches of earlier versions have no manifest, and these checks are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import google_crc32c
import numpy as np
import zarr

from extract.cache.format import COLUMNS, OWNER_COLUMN, CacheError
from extract.cache.location import read_files

MANIFEST, MANIFEST_SUM = "manifest", "manifest_crc32c"
"""Attributes of the group: the checksums of everything but the RoI arrays' shards, and that of all other attributes."""
WORK_ARRAYS = ("progress", "block_checksums")
"""Arrays that only writing needs."""


def sealed_attributes(group: zarr.Group, url: str) -> dict[str, Any]:
    """Returns the attributes of a cache that is whole, with its manifest."""
    nodes = {name: node for name, node in group.members(max_depth=None) if name not in WORK_ARRAYS}
    metadata = dict(zip(nodes, map(_metadata_sum, _read_metadata(url, nodes)), strict=True))
    shards = {column.name for column in (*COLUMNS.values(), OWNER_COLUMN)}
    small = [name for name, node in nodes.items() if isinstance(node, zarr.Array) and name not in shards]
    values = {name: crc32c(np.ascontiguousarray(group[name][:])) for name in sorted(small)}
    others = {name: value for name, value in group.attrs.asdict().items() if name not in (MANIFEST, MANIFEST_SUM)}
    attributes = {**others, "complete": True, MANIFEST: {"metadata": dict(sorted(metadata.items())), "values": values}}
    return {**attributes, MANIFEST_SUM: _attributes_sum(attributes)}


def check_manifest(group: zarr.Group, url: str) -> None:
    """Raises CacheError naming what is missing, damaged or of another cache; returns if there is no manifest."""
    attributes = group.attrs.asdict()
    if MANIFEST not in attributes:
        return
    if attributes.get(MANIFEST_SUM) != _attributes_sum(attributes):
        raise CacheError(f"{url}/zarr.json: damaged: its attributes do not have the checksum {MANIFEST_SUM}")
    expected = attributes[MANIFEST]["metadata"]
    for (name, crc), content in zip(expected.items(), _read_metadata(url, expected), strict=True):
        if content is None:
            raise CacheError(f"{url}: has no {name}, which the manifest lists")
        if _metadata_sum(content) != crc:
            raise CacheError(f"{url}/{name}/zarr.json: damaged, or of another cache: it is not the manifest's")


def differs_from_manifest(group: zarr.Group, name: str, values: np.ndarray) -> bool | None:
    """Returns whether a small array has another content than the manifest says; None if the manifest does not say."""
    expected = group.attrs.get(MANIFEST, {}).get("values", {}).get(name)
    return None if expected is None else crc32c(np.ascontiguousarray(values)) != expected


def crc32c(data: bytes | np.ndarray) -> str:
    """Returns the crc32c of bytes or of a contiguous array, in hexadecimal."""
    flat = data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    return f"{google_crc32c.value(flat):08x}"


def _attributes_sum(attributes: Mapping[str, Any]) -> str:
    others = {name: value for name, value in attributes.items() if name != MANIFEST_SUM}
    return crc32c(json.dumps(others, sort_keys=True).encode())


def _read_metadata(url: str, names: Iterable[str]) -> list[bytes | None]:
    return read_files(url, [f"{name}/zarr.json" for name in names])


def _metadata_sum(content: bytes | None) -> str:
    return crc32c(content or b"")
