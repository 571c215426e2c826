"""Folders that are replaced as a whole: the new one is written beside the old one, and both change places at the end.

At every moment the old or the new folder is there. What a killed process leaves is put right by `settle`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from extract.utils.files import PARTIAL, flush, is_partial

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder beside `path` in which its replacement is written."""
    path = Path(path)
    if path.name.endswith(PARTIAL):
        raise ValueError(f"{path}: names that end in {PARTIAL} are of outputs that are being written; give another")
    return path.with_name(path.name + PARTIAL)


def unused_partial(path: Path) -> Path:
    """Returns `partial_folder`, after what a killed process has left there is deleted."""
    new = partial_folder(path)
    if new.exists():
        remove_folder(new)
    return new


def can_be_renamed(path: Path) -> bool:
    """Returns whether a folder, which need not exist, may get another name: no mount, and not in a read-only folder."""
    return not (os.path.ismount(path) or (path.parent.is_dir() and not os.access(path.parent, os.W_OK)))


def can_be_replaced(path: Path, own: Collection[str]) -> bool:
    """Returns whether a folder can be replaced as a whole, since all that it has, if anything, is of these names."""
    names = os.listdir(path) if path.exists() else []
    return can_be_renamed(path) and all(name in own or is_partial(name) for name in names)


def put_in_place(new: Path, path: Path) -> None:
    """Makes the folder `new` the one at `path`, and deletes an older one there."""
    if not path.exists():
        os.rename(new, path)
    elif _exchange(new, path):
        remove_folder(new)
    else:  # file systems that cannot exchange two names, such as NFS: `settle` finishes or undoes this
        os.rename(path, _trash(path))
        os.rename(new, path)
        shutil.rmtree(_trash(path))
    flush(path.parent)


def remove_folder(path: Path) -> None:
    """Deletes a folder; renames it before, so that a kill never leaves half of it under its name."""
    target = path.with_name(path.name.removesuffix(PARTIAL))
    if _trash(target).exists():
        shutil.rmtree(_trash(target))
    os.rename(path, _trash(target))
    shutil.rmtree(_trash(target))


def settle(path: Path, is_finished: Callable[[Path], bool], manifest: str) -> bool:
    """Finishes or undoes a replacement that was killed at the end; returns whether it has finished one.

    Args:
        path: of the output.
        is_finished: whether a folder is a finished output.
        manifest: file that is written last; of two finished outputs, that with the later one is the new one.
    """
    new, trash = partial_folder(path), _trash(path)
    if trash.exists():
        if path.exists() or not is_finished(trash):
            shutil.rmtree(trash)
        else:
            os.rename(trash, path)
    if not (new.exists() and is_finished(new)):
        return False
    if path.exists() and (new / manifest).stat().st_mtime_ns < (path / manifest).stat().st_mtime_ns:
        remove_folder(new)  # the old one, after the exchange
        return False
    put_in_place(new, path)
    return True


def _trash(path: Path) -> Path:
    """Returns where a folder is deleted."""
    return path.with_name(f".{path.name}.deleted")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; returns False where the system cannot."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
