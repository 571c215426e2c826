"""The memory that a process may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int:
    """Returns the bytes that can be used without swapping, within the limits of the container (cgroup v1 or v2)."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for folder in _groups(cgroup, membership):
        for limit_file, usage_file, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if (folder / limit_file).exists() and (limit := (folder / limit_file).read_text().strip()).isdigit():
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                # The kernel evicts cached files that are not in use, so they count as free.
                used = int((folder / usage_file).read_text()) - int(statistics[inactive])
                limits.append(max(int(limit) - used, 0))
    return min(limits)


def _groups(cgroup: Path, membership: Path) -> Iterator[Path]:
    """Yields the folders of this process's cgroups and their parents; containers may show only the outermost."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers or "memory" in controllers.split(","):
            root = cgroup / ("memory" if controllers else "")
            inner = root / path.strip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pauses the cyclic garbage collector in the block or, as a decorator, in the function.

    Where millions of objects are made that all stay, its visits to them take more time than making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
