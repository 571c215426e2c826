"""What is stored at the URL of a cache, and whether it may be deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import zarr

from extract.cache.format import FORMAT, CacheError, open_group


def remove_cache(url: str) -> None:
    """Deletes the cache at `url`, finished or not. Raises FileNotFoundError or CacheError if there is no cache."""
    open_group(url, "r")
    if "://" in url:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
        files.rm(path, recursive=True)
    else:
        shutil.rmtree(url)


def may_be_replaced(url: str, overwrite: bool) -> bool:
    """Returns whether there is a cache, or the beginning of one, to replace; False if nothing is there.

    Raises CacheError for a cache without `overwrite`, and for anything else.
    """
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


def _occupied(url: str) -> bool:
    """Returns whether anything is stored at `url`, a cache or not: overwriting must never delete other files."""
    if "://" not in url:
        path = Path(url)
        return path.exists() and (path.is_file() or any(path.iterdir()))
    try:
        zarr.open(url, mode="r")
    except FileNotFoundError:
        return False
    return True


def refuse_same(out: str, source: str | None) -> None:
    """Raises CacheError if a cache to write is at the place of one that is read, which `--overwrite` would remove."""
    places = [str(url).rstrip("/") if "://" in str(url) else str(Path(url).resolve()) for url in (out, source or "")]
    if source is not None and places[0] == places[1]:
        raise CacheError(f"{out}: is the cache to read; give another place to write to")
