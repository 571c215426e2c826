"""The memory of commands with `--memory-limit`, and that of 10,000 images one after the other.

    python -m benchmarks.reliability.memory            # needs `make demo RECIPE=paper`
    python -m benchmarks.reliability.memory --save

Each command runs in a process of its own: without a limit, then with limits that are shares of the memory that it took.
It has to finish, or to refuse before it starts, and must not exceed the limit by more than 10 %. Memory is the largest
resident set (ru_maxrss).

Of 10,000 images, memory is compared with that after the first 1,000: live, a detector and a head on images that are
made up; offline, the same from a cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import calib
import fuse
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.paper.setups import MASK_RCNN
from benchmarks.processes import run_python
from benchmarks.reliability.children import run_child
from benchmarks.reliability.results import save
from benchmarks.reliability.targets import head_of
from extract import open_cache
from extract.cache.format import IMAGES_PER_BLOCK
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.utils.memory_limit import resident_bytes
from fuse.config import FusionConfig
from fuse.fusion import Fusion
from tests.fuse_fixtures import annotations, tiny_cache

SHARES = (0.95, 0.7, 0.4)
"""Limits, as shares of the memory without a limit."""
TOLERANCE = 1.1
"""A limit may be exceeded by so much."""
IMAGES, WARM_UP = 10_000, 1_000
GROWTH = 20_000_000
"""Bytes by which memory may grow from the first to the last image: allocators do not return all at once."""
HANG = 7200
"""Seconds that 10,000 images may take, on a busy machine too."""
MB = 1_000_000
RUN, DATA = Path("data/plain"), Path("data/minilvis")
CLASSES = 12
BLOCKS = 4
"""Of images that are extracted: memory has reached its height after three."""


class Peak(NamedTuple):
    """How a process ended, the most memory that it took in bytes, and its last line on stderr."""

    code: int
    memory: int
    line: str


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per measurement; returns 1 if a limit was exceeded or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose names have this")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--save", action="store_true", help="write the results to benchmarks/results")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for case, measure in measurements(Path(name), options.images):
            if options.only not in case:
                continue
            for row in measure():
                print(row, flush=True)
                rows.append(row)
    if options.save:
        save("memory", rows, ["case", "situation"])
    return int(any(row["faults"] for row in rows))


def measurements(folder: Path, images: int) -> list[tuple[str, Callable[[], Iterator[dict[str, object]]]]]:
    """Returns the cases by name."""
    weights = "benchmarks/minilvis/weights/plain.safetensors"
    extraction = ["extract", "--detector", MASK_RCNN, "--weights", weights, "--device", "cpu", "--split", "val"]
    extraction += ["--annotations", str(_first_images(folder)), "--train-annotations", f"{DATA}/train.json"]
    extraction += ["--images", f"{DATA}/val", "--min-images-per-class", "1", "--level", "pooled"]
    training = ["calib.train", "--cache", f"{RUN}/train.zarr", "--steps", "20", "--device", "cpu"]
    detection = ["fuse", "--cache", f"{RUN}/val.zarr", "--head", f"{RUN}/head", "--annotations", f"{DATA}/val.json"]
    commands = {"extract": extraction, "calib.train": training, "fuse": detection}
    limited = [(name, lambda name=name: _limited(name, commands[name], folder / "out")) for name in commands]
    growth = {"live": _live, "offline": _offline}
    grown = [(name, lambda name=name: _grown(name, growth[name], images, folder)) for name in growth]
    return [*limited, *grown]


def _first_images(folder: Path) -> Path:
    """Writes the annotations of the first `BLOCKS` blocks of validation images."""
    content = json.loads((DATA / "val.json").read_text())
    content["images"] = content["images"][: BLOCKS * IMAGES_PER_BLOCK]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    file = folder / "val.json"
    file.write_text(json.dumps(content))
    return file


def _limited(name: str, command: Sequence[str], out: Path) -> Iterator[dict[str, object]]:
    """Runs a command without a limit and with limits."""
    free = _run(command, out)
    if free.code:
        raise RuntimeError(f"{name} fails without a limit: {free.line}")
    row = {"case": name, "situation": "no limit", "limit_mb": 0, "memory_mb": free.memory // MB}
    yield {**row, "ends": "finished", "faults": 0}
    for share in SHARES:
        limit = int(share * free.memory)
        peak = _run([*command, "--memory-limit", str(limit)], out)
        ends = "finished" if peak.code == 0 else "refused" if "expected at least" in peak.line else "stopped"
        fault = peak.memory > TOLERANCE * limit or (peak.code != 0 and "memory_limit is" not in peak.line)
        row = {"case": name, "situation": f"limit of {share:.0%}", "limit_mb": limit // MB}
        yield {**row, "memory_mb": peak.memory // MB, "ends": ends, "faults": int(fault)}


def _run(command: Sequence[str], out: Path) -> Peak:
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryFile("w+") as errors:
        usage = run_python(["-m", *command, "--out", str(out)], subprocess.DEVNULL, errors)
        errors.seek(0)
        lines = errors.read().splitlines()
    return Peak(usage.code, usage.memory, lines[-1] if lines else "")


def _grown(
    name: str, process: Callable[[int, Path], Iterator[None]], images: int, folder: Path
) -> Iterator[dict[str, object]]:
    """Compares the memory after the last image with that after `WARM_UP`, in a child process."""

    def measure() -> None:
        before = 0
        for count, _ in enumerate(process(images, folder), 1):
            if count == WARM_UP:
                before = resident_bytes()
        (folder / "growth").write_text(str(resident_bytes() - before))

    outcome = run_child(measure, folder, hang=HANG)
    if outcome.code:
        raise RuntimeError(f"{name} fails: {outcome.errors}")
    grown = int((folder / "growth").read_text())
    row = {"case": name, "situation": f"growth over {images:,} images", "limit_mb": GROWTH // MB}
    yield {**row, "memory_mb": round(grown / MB), "ends": "finished", "faults": int(grown > GROWTH)}


def _live(images: int, folder: Path) -> Iterator[None]:
    torch.manual_seed(0)
    torch.save(mask_rcnn(CLASSES).state_dict(), folder / "weights.pth")
    spec = DetectorSpec(MASK_RCNN, folder / "weights.pth", None, (f"num_classes={CLASSES}",), device="cpu")
    adapter = load_detector(spec)
    detector = fuse.CalibratedDetector(adapter, head_of(adapter, CLASSES, seed=0), max_detections=20)
    rng = np.random.default_rng(0)
    for _ in range(images):
        detector(rng.integers(0, 256, (64, 64, 3), np.uint8))
        yield


def _offline(images: int, folder: Path) -> Iterator[None]:
    tiny_cache(folder / "val.zarr", annotations(images))
    cache = open_cache(str(folder / "val.zarr"))
    fusion = Fusion.for_cache(cache, FusionConfig(mode="calibrated"), calib.posthoc.NorCal().fit(cache))
    for rois in cache:
        fusion.detect(rois)
        yield


if __name__ == "__main__":
    sys.exit(main())
