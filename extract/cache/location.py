"""What lies at the place of a cache, and what may be deleted there."""

from __future__ import annotations

import shutil
from pathlib import Path

import zarr

from extract.cache.format import FORMAT, CacheError, open_group


def remove_cache(url: str) -> None:
    """Deletes the cache at `url`, finished or not. Raises rather than delete anything else."""
    open_group(url, "r")
    if "://" in url:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
        files.rm(path, recursive=True)
    else:
        shutil.rmtree(url)


def _occupied(url: str) -> bool:
    """Whether there is anything at all, a cache or not: overwriting must never delete anything but a cache."""
    if "://" not in url:
        path = Path(url)
        return path.exists() and (path.is_file() or any(path.iterdir()))
    try:
        zarr.open(url, mode="r")
    except FileNotFoundError:
        return False
    return True


def may_be_replaced(url: str, overwrite: bool) -> bool:
    """Whether a cache, or the beginning of one, is to be replaced. Raises CacheError for anything else there."""
    if not _occupied(url):
        return False
    try:
        attributes = zarr.open_group(url, mode="r").attrs
    except (FileNotFoundError, ValueError):
        attributes = {}
    is_cache = attributes.get("format") == FORMAT
    if attributes.get("creating") or (overwrite and is_cache):
        return True
    raise CacheError(
        f"{url}: something is there already" + ("; --overwrite replaces it" if is_cache else ", and it is no RoI cache")
    )
