"""Finds what is damaged in a cache, image by image, and marks it so that the extraction does that part again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np

from extract.cache.checksums import BLOCK_CHECKSUMS
from extract.cache.format import IMAGES_PER_BLOCK, OWNER_COLUMN, CacheError, block_slice, open_group
from extract.cache.manifest import MANIFEST, MANIFEST_SUM
from extract.cache.reader import RoICache
from extract.cache.values import check_stored, image_digest
from extract.rois import RoIs
from extract.utils.errors import listed
from extract.utils.progress import progress_bar


class Damage(NamedTuple):
    """What is wrong with an image of a cache; `fault` names the file or the array."""

    position: int
    image_id: int
    fault: str


def find_damage(cache: RoICache, use: Callable[[RoIs], None] | None = None) -> Iterator[Damage]:
    """Yields the images whose arrays are damaged, in stored order. Reads everything and compares all checksums.

    The content of an image is compared with its digest, so that arrays are found that are valid, but another image's.
    `use` is called with the RoIs of each other image, so that a further check does not read them again.
    """
    digests = cache.digests
    for position in progress_bar(range(len(cache)), desc="verify", unit="image"):
        try:
            rois = cache.image_at(position)
            fault = _fault(cache, position, rois, int(digests[position]))
        except CacheError as error:
            fault = str(error).removeprefix(f"{cache.url}/")
        if fault:
            yield Damage(position, int(cache.images["image_id"].iloc[position]), fault)
        elif use is not None:
            use(rois)


def _fault(cache: RoICache, position: int, rois: RoIs, digest: int) -> str:
    """Returns what is wrong with an image, "" if nothing is. Raises CacheError for what reading and values show."""
    check_stored(rois, cache.columns)
    if image_digest([getattr(rois, field) for field in cache.columns]) != digest:
        return "the arrays do not have the digest in images/digest"
    owners = cache.owners(position)
    return "" if (owners == position).all() else f"{OWNER_COLUMN.name} holds other images' positions"


def describe_damage(cache: RoICache, damages: Collection[Damage], marked: bool) -> str:
    """Returns one line that names damaged images and how to repair them; `marked` says whether they are."""
    blocks = {damage.position // IMAGES_PER_BLOCK for damage in damages}
    faults = listed([f"image {damage.image_id} ({damage.fault})" for damage in damages])
    again = f"the command that made the cache extracts {len(blocks):,} block(s) of {IMAGES_PER_BLOCK} images again"
    remedy = again if marked else f"after `python -m extract verify {cache.url} --repair`, {again}"
    return f"{cache.url}: {len(damages):,} of {len(cache):,} images are damaged: {faults}; {remedy}"


def mark_damaged(cache: RoICache, damages: Collection[Damage]) -> None:
    """Marks the blocks of damaged images as not written, and the cache as unfinished.

    Raises CacheError if the cache no longer has the arrays that writing needs.
    """
    group = open_group(cache.url, "r+")
    if "progress" not in group:
        raise CacheError(f"{cache.url}: has no progress, so that it cannot be repaired; make it again with --overwrite")
    for block in sorted({damage.position // IMAGES_PER_BLOCK for damage in damages}):
        group["progress"][block_slice(block)] = -1
        if BLOCK_CHECKSUMS in group:
            group[BLOCK_CHECKSUMS][block] = np.uint32(0)
    attributes = {k: v for k, v in group.attrs.asdict().items() if k not in (MANIFEST, MANIFEST_SUM)}
    group.attrs.put({**attributes, "complete": False})
