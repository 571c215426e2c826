"""Locks of outputs, which the system releases however the process ends: one writer, or several that share a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from extract.utils.distributed import is_main_process
from extract.utils.files import remove_partials

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


class InUseError(ValueError):
    """An output that another process is writing."""


@contextmanager
def one_writer(output: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the lock of an output, a file or a folder, for the block; creates the folder that it is in.

    The lock is on a file beside the output, so that it also holds between machines on file systems that pass locks on,
    as NFS does. Of torchrun's processes rank 0 takes it for all. Object stores, and folders that cannot be written to,
    have no lock.

    Raises InUseError naming the output, and the process and the machine that are writing it.
    """
    descriptor, path = None, _lock_path(output)
    if fcntl is not None and path is not None and is_main_process():
        descriptor = _acquire(path, output)
    try:
        yield
    finally:
        if descriptor is not None and path is not None:
            with suppress(FileNotFoundError):
                path.unlink()  # before it is released: whoever waits for it notices that it is gone
            os.close(descriptor)


@contextmanager
def shared_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Shares a folder with other writers for the block; creates it.

    Whoever comes while nobody else writes there first removes the files that killed writers have left.
    """
    os.makedirs(folder, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # others write there, or the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_partials(folder)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _lock_path(output: str | os.PathLike[str]) -> Path | None:
    if "://" in str(output):
        return None
    path = Path(os.path.abspath(output))
    return path.with_name(f".{path.name}.lock") if path.name else None


def _acquire(path: Path, output: object) -> int | None:
    """Returns the descriptor of the locked file; None where the file system has no locks or cannot be written to."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # what prevents the lock prevents or permits the output itself, which reports it better
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise InUseError(f"{output}: {owner or 'another process'} is writing it") from None
        except OSError:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            with suppress(OSError):  # a full disk: the lock holds without a name in it
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # its owner has removed it meanwhile


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
