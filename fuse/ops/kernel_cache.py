"""Keeps the machine code of Numba kernels on disk, so that later processes need not compile them.

Numba's own `cache=True` has an index file per function. Processes that compile at the same time overwrite it and may
then load the code of another signature, and a change of a function that a kernel calls in another module goes
unnoticed. Here each signature has a file of its own, named after a hash of all that its code depends on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

_LOG = logging.getLogger(__name__)
DIGEST_BYTES = hashlib.sha256().digest_size
WRITABLE_BY_OTHERS = 0o022


def cached_njit(function: Callable) -> Any:
    """Compiles a function as `numba.njit` does, and keeps its machine code on disk.

    The kernel releases the GIL. A division by zero gives infinity or NaN as in NumPy, which vector instructions need.

    The folder is that of Numba's own cache: NUMBA_CACHE_DIR, `__pycache__` beside the module, or the user's cache
    folder, the first that can be written. Without any, each process compiles.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        dispatcher._cache = _KernelCache(function)
    except RuntimeError as error:
        _LOG.debug("kernels are compiled in every process: %s", error)
    return dispatcher


def inner_njit(function: Callable) -> Any:
    """Compiles a function that only kernels call, without what calls from Python and C need."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(nogil=True, error_model="numpy", **options)(function)


class _KernelCache(FunctionCache):
    """Implements Numba's interface of a function's cache. Errors of the disk are as if there were no cache."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the compiled kernel of a signature, None if it is not on disk."""
        target_context.refresh()
        payload = _read(self._file(sig, target_context.codegen()))
        return None if payload is None else self._impl.rebuild(target_context, pickle.loads(payload))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Writes the compiled kernel of a signature."""
        if self._impl.check_cachable(data):
            _write(self._file(sig, data.codegen), dumps(self._impl.reduce(data)))

    def _file(self, sig: Any, codegen: Any) -> Path:
        """Returns the file of a signature for this machine, these libraries and these sources."""
        key = repr((self._index_key(sig, codegen), _environment()))
        name = f"{self._impl.filename_base}.{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel"
        return Path(self.cache_path) / name


@cache
def _environment() -> tuple[str, ...]:
    """Returns versions of the compilers, and a hash of all kernels' sources, for they call each other."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    return (sources.hexdigest(), *(version(name) for name in ("numba", "llvmlite", "numpy")))


def _read(path: Path) -> bytes | None:
    """Returns the content; None for a file that is missing, damaged, or writable by other users, as it is executed."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError:
        return None
    if hasattr(os, "getuid") and (status.st_uid not in (0, os.getuid()) or status.st_mode & WRITABLE_BY_OTHERS):
        _LOG.debug("%s: is not used, because other users may write it", path)
        return None
    digest, payload = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return payload if hashlib.sha256(payload).digest() == digest else None


def _write(path: Path, payload: bytes) -> None:
    """Writes a file that is whole for every reader. Only its owner may write it again."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(payload).digest() + payload)
        temporary.replace(path)
    except OSError as error:
        _LOG.debug("%s: %s", path, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
