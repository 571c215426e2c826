"""Machine code of kernels is kept on disk: used where it fits, compiled again where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from fuse.ops import kernel_cache
from fuse.ops.kernel_cache import cached_njit

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder in which kernels are kept."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def double(values):
    total = values[0]
    for value in values[1:]:
        total += value
    return 2 * total


def was_loaded(values: np.ndarray) -> bool:
    """Returns whether a new dispatcher, as a new process has it, finds its code on disk; checks its result."""
    kernel = cached_njit(double)
    assert kernel(values) == 2 * values.sum()
    return sum(kernel.stats.cache_hits.values()) == 1


def kernel_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kernel"))


def test_code_is_kept_for_each_signature(folder):
    floats, integers = np.arange(4, dtype=np.float32), np.arange(4)
    assert [was_loaded(floats), was_loaded(integers)] == [False, False]
    assert [was_loaded(floats), was_loaded(integers)] == [True, True]
    assert len(kernel_files(folder)) == 2


def test_other_sources_or_libraries_are_not_served(folder, monkeypatch):
    was_loaded(np.arange(4))
    monkeypatch.setattr(kernel_cache, "_environment", lambda: ("other",))
    assert not was_loaded(np.arange(4))
    assert len(kernel_files(folder)) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:40], lambda content: b""])
def test_a_damaged_file_is_replaced(folder, damage):
    was_loaded(np.arange(4))
    (file,) = kernel_files(folder)
    file.write_bytes(damage(file.read_bytes()))
    assert [was_loaded(np.arange(4)), was_loaded(np.arange(4))] == [False, True]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_a_file_that_others_may_write_is_not_executed(folder):
    was_loaded(np.arange(4))
    (file,) = kernel_files(folder)
    assert not file.stat().st_mode & 0o077
    file.chmod(0o666)
    assert not was_loaded(np.arange(4))


def test_without_room_on_the_disk_each_process_compiles(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache, "NamedTemporaryFile", full)
    assert [was_loaded(np.arange(4)), was_loaded(np.arange(4))] == [False, False]


def test_without_a_folder_each_process_compiles(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")
    assert [was_loaded(np.arange(4)), was_loaded(np.arange(4))] == [False, False]


@pytest.mark.process
def test_processes_that_start_together(tmp_path):
    """All compile, each in its own order of signatures; all are right, and a later process finds every signature."""
    code = """
import sys
import numpy as np
from fuse import class_nms
from fuse.ops.iou_kernels import greedy_nms
from fuse.ops.nms_kernels import _block_maxima
rng = np.random.default_rng(0)
boxes = rng.random((20, 4), np.float32).cumsum(1)
jobs = [(boxes, 0.5), (np.repeat(boxes[:, None], 5, 1), 0.3)][:: int(sys.argv[1])]
print(sorted(class_nms(b, rng.random((20, 6), np.float32) * 0 + 0.1, iou_threshold=t).roi_index.sum() for b, t in jobs))
print(sum(k.stats.cache_misses.total() for k in (_block_maxima, greedy_nms)))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def start(order: int) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(order)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    outputs = [process.communicate(timeout=300)[0].split("\n") for process in [start(1), start(-1), start(1)]]
    later = start(-1).communicate(timeout=300)[0].split("\n")
    assert {output[0] for output in outputs} == {later[0]} and later[0]
    assert later[1] == "0"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".kernel"]
