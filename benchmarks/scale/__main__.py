"""Runs the whole pipeline at the size of LVIS v1, on images of 32 pixels.

    OMP_NUM_THREADS=1 python -m benchmarks.scale --out data/scale                  # all of it: hours on one core
    OMP_NUM_THREADS=1 python -m benchmarks.scale --out data/scale --share 0.1

It needs detectron2, whose package has LVIS v1's class table. Every step is a command of this library in a process of
its own. Then it checks what only shows at size: no image and no class is missing, the logits that a cache computes from
half floats are the detector's, and two engines agree. Writes `benchmarks/results/scale.csv`: wall and processor time,
peak memory, and the files and bytes of what each step wrote.
"""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import extract
from benchmarks.processes import run_python
from benchmarks.provenance import provenance
from benchmarks.scale.dataset import IMAGES, file_name, make_dataset
from benchmarks.scale.detector import write_weights
from extract.config import DetectorSpec
from extract.data.decoding import decode_image
from extract.detectors import load_detector
from extract.detectors.base import Image
from fuse.defaults import MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate_rows

RESULTS = Path(__file__).parents[1] / "results" / "scale.csv"
DETECTOR = "torchvision:benchmarks.scale.detector:mask_rcnn"
IMAGES_PER_CLASS, PROPOSALS, STEPS = 100, 100, 12_000
COMPARED_IMAGES = 50
ESTIMATE = re.compile(r"about ([\d.]+) GB; about ([\d.]+) minutes")
"""What extraction logs of the whole cache after its first block."""


@dataclass(frozen=True)
class Config:
    """Where, and how much of LVIS v1."""

    out: Path
    """Folder to write; it must not exist."""

    share: float = 1.0
    """Of the images of both splits."""


def main(config: Config) -> None:
    """Makes the dataset, runs the commands, saves their figures and checks the results."""
    data = config.out / "data"
    started, cpu = time.perf_counter(), time.process_time()
    make_dataset(data, config.share)
    write_weights(config.out / "detector.safetensors")
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    rows = [{"step": "dataset", "seconds": wall, "cpu_seconds": cpu, **size_of(data)}]
    for step, (arguments, out) in commands(config.out).items():
        rows.append({"step": step, **run(arguments, config.out / f"{step}.log"), **size_of(out)})
        print(rows[-1], flush=True)
    train, val = (len(extract.open_cache(str(config.out / f"{split}.zarr"))) for split in IMAGES)
    images = {"dataset": len(list(data.glob("*2017/*"))), "extract train": train, "calib.train": train}
    table = pd.DataFrame(rows).round(1).assign(share=config.share, **provenance())
    table.insert(1, "images", table["step"].map(images).fillna(val).astype(int))
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))
    print(check(config))


def commands(out: Path) -> dict[str, tuple[list[str], Path]]:
    """Returns each step's arguments to Python, and what it writes."""
    data, train, val, head, run_folder = (str(out / name) for name in ("data", "train.zarr", "val.zarr", "head", "run"))
    extraction = ["-m", "extract", "--detector", DETECTOR, "--weights", f"{out}/detector.safetensors"]
    extraction += ["--level", "hidden", "--projection", "0", "--images", data, "--batch-size", "16", "--masks", "False"]
    of_train = ["--annotations", f"{data}/train.json", "--min-images-per-class", str(IMAGES_PER_CLASS)]
    of_train += ["--rois-per-class", "2", "--background", "16", "--out", train]
    of_val = ["--annotations", f"{data}/val.json", "--train-annotations", f"{data}/train.json", "--out", val]
    of_val += ["--proposals", str(PROPOSALS)]
    training = ["-m", "calib.train", "--cache", train, "--out", head, "--head-type", "3fc_ft", "--steps", str(STEPS)]
    annotations = ["--annotations", f"{data}/val.json", "--iou-types", "bbox"]
    fusion = ["-m", "fuse", "--cache", val, "--head", head, *annotations, "--out", run_folder]
    return {
        "extract train": ([*extraction, "--split", "train", *of_train], out / "train.zarr"),
        "extract val": ([*extraction, "--split", "val", *of_val], out / "val.zarr"),
        "verify val": (["-m", "extract", "verify", val], out / "val.zarr"),
        "calib.train": (training, out / "head"),
        "fuse": (fusion, out / "run"),
    }


def run(arguments: list[str], log: Path) -> dict[str, float]:
    """Runs a command. Returns times, peak memory in bytes and, of extraction, its estimates of time and size."""
    with log.open("w") as file:
        usage = run_python(arguments, file, subprocess.STDOUT)
    if usage.code:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")
    figures: dict[str, float] = {name: getattr(usage, name) for name in ("seconds", "cpu_seconds", "memory")}
    if estimate := ESTIMATE.search(log.read_text()):
        figures |= {"estimated_bytes": float(estimate[1]) * 1e9, "estimated_seconds": float(estimate[2]) * 60}
    return figures


def size_of(folder: Path) -> dict[str, int]:
    """Returns the number of files in a folder, and their bytes."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def check(config: Config) -> dict[str, float]:
    """Returns AP of boxes and the largest error of logits. Raises AssertionError, naming what does not hold."""
    train, val = (extract.open_cache(str(config.out / f"{split}.zarr")) for split in IMAGES)
    labels = train.read("labels")[:, 0]
    objects = np.unique(labels[(labels >= 0) & (labels < train.num_classes)])
    assert len(objects) == train.num_classes, f"{train.num_classes - len(objects)} classes have no RoIs"
    annotations = load_annotations(config.out / "data" / "val.json")
    ids = val.images["image_id"].tolist()
    assert ids == sorted(image["id"] for image in annotations["images"]), "images of val are missing"
    detections = Detections.from_json(config.out / "run" / "detections.json")
    options = {"iou_types": ("bbox",), "max_detections": MAX_DETECTIONS}
    native, other = (
        evaluate_rows(annotations, {"cat": detections}, val.classes, engine=engine, **options).summary["AP"].item()
        for engine in ("native", "hotcoco")
    )
    assert abs(native - other) < 1e-9, f"AP is {native} by the native engine, {other} by hotcoco"
    return {"AP": native, "logit_error": logit_error(val, config)}


def logit_error(cache: extract.RoICache, config: Config) -> float:
    """Returns the largest difference between a cache's logits and the detector's, relative to an image's largest."""
    spec = DetectorSpec(DETECTOR, config.out / "detector.safetensors", device="cpu")
    detector = load_detector(spec)
    worst = 0.0
    for position in np.linspace(0, len(cache) - 1, COMPARED_IMAGES).astype(int).tolist():
        image_id = int(cache.images["image_id"].iloc[position])
        pixels = decode_image(config.out / "data" / "val2017" / file_name(image_id))
        (live,) = detector.forward([Image(image_id, pixels)], "logits").rois
        stored = cache[position].logits.astype(np.float32)
        assert len(stored) == min(len(live), PROPOSALS), f"image {image_id} has {len(stored)} RoIs"
        own = live.logits[: len(stored)]
        worst = max(worst, float(np.abs(stored - own).max() / np.abs(own).max()))
    return worst


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
