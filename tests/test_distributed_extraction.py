"""`torchrun -m extract`: any number of processes write the bytes that one writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import extract
from extract.cache.format import IMAGES_PER_BLOCK, open_group
from extract.cache.writer import resume_cache
from extract.utils.distributed import Coordinator, is_main_process, local_rank, process_group, rank, world_size
from tests.conftest import CLASSES, Tiny
from tests.test_extraction import flags, folder_bytes

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
IMAGES, BLOCKS = 100, 7


def mask_rcnn(num_classes: int):
    """The tests' detector. The process of rank `KILLED` kills itself once the first block of `CACHE` is written."""
    from benchmarks.minilvis.detector import mask_rcnn

    model = mask_rcnn(num_classes)
    if "KILLED" in os.environ:
        model.transform.register_forward_pre_hook(lambda *_: _killed() if _is_killed() else time.sleep(0.1))
    return model


def _is_killed() -> bool:
    return os.environ["KILLED"] == os.environ["RANK"]


def _killed() -> None:
    while not 0 < _missing(os.environ["CACHE"]) < BLOCKS:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


def _missing(cache: str) -> int:
    """Number of blocks not written yet; 0 if there is no cache."""
    try:
        return len(resume_cache(cache).pending())
    except (FileNotFoundError, extract.CacheError):  # not there, or just being made
        return 0


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A config whose cache a single process has written."""
    from benchmarks.minilvis import make

    folder = tmp_path_factory.mktemp("hundred")
    make.make(make.Config(out=folder, classes=CLASSES, train_images=IMAGES, eval_images=2, size=96, workers=1))
    config = Tiny(folder, tiny.weights).config("train", folder / "whole", level="hidden", projection=8)
    config = replace(config, detector="torchvision:tests.test_distributed_extraction:mask_rcnn")
    extract.run(config)
    return config


def torchrun(processes: int, config: extract.Config, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += ["-m", "extract", *map(str, flags(config)), "--level", config.level, "--projection", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_processes_of_any_number_write_the_same_bytes(whole, tmp_path):
    """Two processes, one of which is killed on the way, then three."""
    config = replace(whole, out=str(tmp_path / "cache"))
    killed = torchrun(2, config, KILLED="1", CACHE=config.out)
    missing = _missing(config.out)
    assert killed.returncode != 0 and 0 < missing < BLOCKS, killed.stderr
    resumed = torchrun(3, config)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming: {BLOCKS - missing} of {BLOCKS} blocks" in resumed.stderr
    assert resumed.stdout.count("RoI cache") == 1 and resumed.stderr.count("images per second") == 1
    assert resumed.stderr.count("principal directions are fitted") == 0, "the first run has fitted them"
    assert folder_bytes(Path(whole.out)) == folder_bytes(Path(config.out))


@pytest.mark.slow
def test_an_error_of_one_process_is_reported_once(whole, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(whole.images, images)
    victim = sorted(images.iterdir())[-1]
    victim.write_bytes(b"")
    failed = torchrun(2, replace(whole, out=str(tmp_path / "cache"), images=images))
    assert failed.returncode != 0
    assert failed.stderr.count("error: ") == 1 and f"{victim}: not a readable image" in failed.stderr
    assert "Traceback" not in failed.stderr.split("torch/distributed")[0]
    assert 0 < _missing(str(tmp_path / "cache")) < BLOCKS


def test_blocks_share_no_file(whole):
    group = open_group(whole.out, "r")
    capacity = group.attrs["rows_per_block"]
    rows = [array.shards[0] for _, array in group.arrays() if array.metadata.dimension_names[0] == "roi"]
    assert len(rows) > 8 and not any(capacity % each for each in rows)
    assert group["progress"].chunks[0] == IMAGES_PER_BLOCK


def test_a_single_process_needs_no_store_and_no_group(monkeypatch):
    coordinator = Coordinator()
    with coordinator.raise_on_main_first(), coordinator.main_process_first(), process_group("cpu"):
        assert (rank(), local_rank(), world_size(), is_main_process()) == (0, 0, 1, True)
    assert coordinator.broadcast(3) == 3 and list(coordinator.work_queue([1, 2])) == [1, 2]
    assert [coordinator.add_finished(4), coordinator.add_finished(5)] == [4, 9]
    coordinator.barrier()
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (rank(), local_rank(), world_size(), is_main_process()) == (5, 1, 8, False)
