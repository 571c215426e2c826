"""What is stored at the URL of a cache, and whether it may be deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import zarr

from extract.cache.format import FORMAT, CacheError, open_group
from extract.utils.files import PARTIAL, is_partial
from extract.utils.folders import can_be_renamed, partial_folder, put_in_place, remove_folder, settle


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


def writing_place(url: str, overwrite: bool) -> str:
    """Returns where a cache for `url` is written: with `overwrite` beside it, until it is finished.

    Object stores cannot exchange two folders, and a mounted folder, or one in a folder that is read-only, cannot
    be renamed: there it is `url` itself.
    """
    if not overwrite or "://" in url:
        return url
    path = Path(os.path.realpath(url))
    return str(partial_folder(path)) if can_be_renamed(path) else url


def clear_place(url: str, overwrite: bool) -> tuple[str, bool]:
    """Returns where to create a cache for `url`, and whether what is there is to be overwritten.

    A cache is created beside `url`, so that nobody sees its beginning. Raises as `may_be_replaced` does.
    """
    replace, place = may_be_replaced(url, overwrite), writing_place(url, True)
    if place == url:
        return url, replace
    if may_be_replaced(place, True):
        remove_folder(Path(place))
    return place, False


def move_to_place(place: str, url: str) -> None:
    """Makes the cache at the place of `clear_place` the one at `url`."""
    if place != url:
        put_in_place(Path(place), Path(os.path.realpath(url)))


def settle_cache(url: str) -> bool:
    """Finishes or undoes an `--overwrite` that was killed at its end; returns whether it has finished one."""
    place = writing_place(url, True)
    return place != url and settle(Path(place.removesuffix(PARTIAL)), _is_finished, "zarr.json")


def _is_finished(folder: Path) -> bool:
    try:
        return bool(open_group(str(folder), "r").attrs["complete"])
    except (OSError, CacheError):
        return False


def _occupied(url: str) -> bool:
    """Returns whether anything is stored at `url`, a cache or not: overwriting must never delete other files."""
    if "://" not in url:
        path = Path(url)
        # Earlier versions, killed in the first instant, have left only a file that Zarr was writing.
        return path.exists() and (path.is_file() or not all(is_partial(entry.name) for entry in path.iterdir()))
    try:
        zarr.open(url, mode="r")
    except FileNotFoundError:
        return False
    return True


def read_files(url: str, names: Sequence[str]) -> list[bytes | None]:
    """Returns the content of files in the folder at a path or URL; None for a file that is missing."""
    if "://" not in url:
        paths = [Path(url, name) for name in names]
        return [path.read_bytes() if path.is_file() else None for path in paths]
    from fsspec.core import url_to_fs

    files, folder = url_to_fs(url)
    remote = [f"{folder.rstrip('/')}/{name}" for name in names]
    found = files.cat(remote, on_error="omit") if remote else {}
    return [found.get(path) for path in remote]


def refuse_same(out: str, source: str | None) -> None:
    """Raises CacheError if a cache to write is at the place of one that is read, which `--overwrite` would remove."""
    places = [str(url).rstrip("/") if "://" in str(url) else str(Path(url).resolve()) for url in (out, source or "")]
    if source is not None and places[0] == places[1]:
        raise CacheError(f"{out}: is the cache to read; give another place to write to")
