"""`--memory-limit`: plans that fit, refusals before work starts, and the end of a process that takes too much."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import calib
import extract.__main__
import fuse.__main__
from benchmarks.processes import run_python
from calib import memory_plan as training_plan
from extract import memory_plan
from extract.memory_plan import Plan, plan_memory
from extract.utils.memory_limit import peak_bytes, require_memory, reset_peak, resident_bytes
from fuse.commands import memory_plan as fusion_plan
from tests.fuse_fixtures import write_tiny
from tests.toy_cache import toy_cache

HUGE = 1e15
PROGRAM = """
import sys, time
from extract.utils.memory_limit import enforced_limit, resident_bytes
with enforced_limit(resident_bytes() + 50e6):
    kept = bytearray(int(sys.argv[1]))
    time.sleep(0.3)
print("whole")
"""


def test_a_limit_that_is_too_small_is_refused_with_the_least_one():
    require_memory(None, HUGE, "all")
    require_memory(2e9, 1.9e9, "a head")
    with pytest.raises(ValueError, match=r"memory_limit is 2e\+09 bytes, expected at least 3.01e\+09, for a head"):
        require_memory(2e9, 3.001e9, "a head")


def test_memory_is_measured():
    reset_peak()
    before = peak_bytes()
    kept = bytearray(100_000_000)
    assert len(kept) and 90e6 < peak_bytes() - before < 150e6 and resident_bytes() <= peak_bytes()


@pytest.mark.process
@pytest.mark.parametrize(("taken", "code"), [(1_000_000, 0), (200_000_000, 1)])
def test_a_process_that_takes_more_is_ended(taken, code):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(taken)], capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stdout == ("" if code else "whole\n")
    lines = done.stderr.splitlines()
    assert len(lines) == code and all(line.startswith("error: memory_limit is ") for line in lines)


@pytest.mark.process
def test_the_memory_of_a_measured_process_is_its_own():
    kept = bytearray(200_000_000)
    usage = run_python(["-c", "raise SystemExit(3)"], subprocess.DEVNULL, subprocess.DEVNULL)
    assert usage.code == 3 and 0 < usage.memory < len(kept) / 2 and usage.seconds > 0


class _Extractor:
    """What a plan reads of an extractor."""

    max_rois_per_image = 100

    def __init__(self, memory_limit):
        self.config = extract.Config(
            *("detectron2",), annotations="a", train_annotations="a", out="o", split="val", memory_limit=memory_limit
        )


@pytest.mark.parametrize(
    ("limit", "plan"),
    [(None, Plan(4, True)), (680, Plan(4, True)), (679, Plan(4, False)), (639, Plan(2, False)), (409, Plan(1, False))],
)
def test_an_extraction_takes_the_fastest_plan_that_fits(limit, plan, monkeypatch):
    # A batch of four takes 4 * (100 + 3 * 5) = 460, a block 40 and storing it 40; with overlap there are two.
    monkeypatch.setattr(memory_plan, "_measure", lambda _: memory_plan._Sizes(100, 100, 5, 40))
    assert plan_memory(_Extractor(limit)) == plan
    with pytest.raises(ValueError, match="memory_limit is 250 bytes, expected at least 295"):
        plan_memory(_Extractor(250))


def test_an_extraction_is_refused_before_anything_is_written(tiny, tmp_path, capsys):
    config = tiny.config("val", tmp_path / "c.zarr", memory_limit=1e6)
    with pytest.raises(ValueError, match=r"memory_limit is 1e\+06 bytes, expected at least .* RoIs"):
        extract.run(config)
    assert not (tmp_path / "c.zarr").exists()
    limited = extract.run(tiny.config("val", tmp_path / "c.zarr", memory_limit=HUGE))
    assert limited.fingerprint == extract.run(tiny.config("val", tmp_path / "c.zarr")).fingerprint, "finished already"


def test_training_streams_features_that_do_not_fit(tmp_path, monkeypatch, capsys):
    cache = toy_cache(tmp_path / "train.zarr", images=120)
    options = {"head_type": "2fc_rand", "hidden": 8, "steps": 4, "classes_per_step": 4, "device": "cpu"}
    whole = calib.train_head(cache, out=str(tmp_path / "whole"), **options)
    in_memory = []
    monkeypatch.setattr(training_plan, "LIBRARIES", 0)
    monkeypatch.setattr(training_plan, "resident_bytes", lambda: 0)

    class Watched(calib.features.Features):
        def __init__(self, *args):
            super().__init__(*args)
            in_memory.append(self.in_memory)

    monkeypatch.setattr("calib.train.Features", Watched)
    limits = (HUGE, least(cache, options, monkeypatch))
    for number, limit in enumerate(limits):
        head = calib.train_head(cache, out=str(tmp_path / str(number)), memory_limit=limit, **options)
        torch.testing.assert_close(head.state_dict(), whole.state_dict(), rtol=0, atol=0)
        assert head.info == whole.info, "the limit is no part of the configuration"
    assert in_memory == [True, False]
    with pytest.raises(ValueError, match="memory_limit is 100 bytes, expected at least .*, for heads of up to "):
        calib.train_head(cache, out=str(tmp_path / "none"), memory_limit=100, **options)
    assert not (tmp_path / "none").exists()


def least(cache, options, monkeypatch) -> float:
    """The least limit that training accepts."""
    needed = []
    with monkeypatch.context() as patched:
        patched.setattr(training_plan, "require_memory", lambda limit, bytes_, what: needed.append(bytes_))
        config = calib.Config(cache=cache.url, out="", memory_limit=1, **options)
        training_plan.memory_for_features(cache, config)
    return needed[0]


def test_fuse_takes_fewer_threads(tmp_path, monkeypatch, capsys):
    annotations, cache, head = write_tiny(tmp_path)
    command = ["--cache", str(cache), "--head", str(head), "--annotations", str(annotations), "--bootstrap", "0"]
    assert fuse.__main__.main([*command, "--out", str(tmp_path / "whole")]) == 0
    threads = []
    detect_many = fuse.commands.detect.detect_many

    def watched(*args, **options):
        threads.append(options["threads"])
        return detect_many(*args, **options)

    monkeypatch.setattr(fuse.commands.detect, "detect_many", watched)
    monkeypatch.setattr(fusion_plan, "available_cpus", lambda: 3)
    limited = [*command, "--out", str(tmp_path / "out"), "--memory-limit", "1e15"]
    assert fuse.__main__.main(limited) == 0 and threads == [3]
    for name in ("detections.json", "metrics.csv", "per_class.csv", "run.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert fuse.__main__.main([*command, "--out", str(tmp_path / "none"), "--memory-limit", "1e6"]) == 1
    assert "memory_limit is 1e+06 bytes, expected at least" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
