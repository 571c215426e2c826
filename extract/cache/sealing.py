"""Checks of a cache at its beginning, and what makes it a finished one at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import zarr

from extract.cache.format import LEVELS, CacheError, Header
from extract.cache.location import move_to_place
from extract.cache.manifest import WORK_ARRAYS, sealed_attributes
from extract.rois import RoIs
from extract.utils.files import flush, flush_tree, remove_partials

if TYPE_CHECKING:
    import pandas as pd


def check_template(url: str, template: RoIs, header: Header, classes: pd.DataFrame, images: pd.DataFrame) -> None:
    """Raises CacheError if the RoIs do not fit class table, header or images."""
    if template.num_classes != len(classes):
        raise CacheError(f"{url}: logits are of {template.num_classes} classes, the class table has {len(classes)}")
    if template.proposals.shape[1] != len(header.stages):
        raise CacheError(f"{url}: RoIs have {template.proposals.shape[1]} stages, the header {len(header.stages)}")
    repeated = images["image_id"].duplicated()
    if repeated.any():
        raise CacheError(f"{url}: image id {images['image_id'][repeated].iloc[0]} repeats")
    axes = None if template.features is None else template.features.ndim
    if axes != LEVELS[header.level]:
        raise CacheError(f"{url}: level {header.level!r} needs features of {LEVELS[header.level]} axes, got {axes}")


def seal(group: zarr.Group, url: str, final_url: str) -> None:
    """Writes the manifest of a cache whose arrays are complete, and moves it to where it belongs.

    Before the manifest, all that it stands for is on the disk, and what killed writers have left is removed.
    """
    if "://" in url:
        group.attrs.put(sealed_attributes(group, url))
        return
    remove_partials(url, below=True)
    flush_tree(url, skip=WORK_ARRAYS)
    group.attrs.put(sealed_attributes(group, url))
    for path in (Path(url, "zarr.json"), Path(url)):
        flush(path)
    move_to_place(url, final_url)
