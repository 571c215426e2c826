"""Opening RoI caches."""

from __future__ import annotations

from extract.cache.format import CacheError, naming_damage, open_group
from extract.cache.manifest import check_manifest
from extract.cache.reader import RoICache


def open_cache(url: str) -> RoICache:
    """Opens a finished cache at a path or fsspec URL.

    Raises FileNotFoundError if there is none, CacheError if it is unfinished, lacks shards, or is not what its manifest
    says.
    """
    cache = open_unchecked(url)
    cache.check_shards()
    return cache


def open_unchecked(url: str) -> RoICache:
    """Opens a finished cache that may lack shards. Raises as `open_cache` does otherwise."""
    url = str(url)
    group = open_group(url, "r")
    check_manifest(group, url)
    if not group.attrs["complete"]:
        counts = group["progress"][:, 0]
        raise CacheError(
            f"{url}: is not finished, {(counts >= 0).sum()} of {len(counts)} images are done; "
            "the command that began it resumes it"
        )
    with naming_damage(url):
        return RoICache(group, url)
