"""Runs the whole pipeline at the size of LVIS v1, on images of 32 pixels.

    OMP_NUM_THREADS=1 python -m benchmarks.scale --out data/scale                  # all of it: half an hour on one core
    OMP_NUM_THREADS=1 python -m benchmarks.scale --out data/scale --share 0.1
    OMP_NUM_THREADS=1 python -m benchmarks.scale --out data/scale --share 0.1 --classes 13204    # as many as V3Det has

It needs detectron2, whose package has LVIS v1's class table. Every step is a command of this library in a process of
its own. Writes `benchmarks/results/scale.csv`: wall and processor time, peak memory, and the files and bytes of what
each step wrote. Then `checks.py` looks for what only shows at size, and writes `scale_checks.csv`. Rows of another
number of classes stay.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import extract
from benchmarks.processes import run_python
from benchmarks.provenance import provenance
from benchmarks.scale.checks import OTHER_HEAD, check
from benchmarks.scale.dataset import IMAGES, NUM_CLASSES, make_dataset
from benchmarks.scale.detector import DETECTOR, write_weights
from benchmarks.speed.measure import merge_into

RESULTS = Path(__file__).parents[1] / "results"
IMAGES_PER_CLASS, PROPOSALS, STEPS = 100, 100, 12_000
OTHER_SUMS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Environment in which PyTorch adds floats in the order of a CPU without AVX-512."""
ESTIMATE = re.compile(r"about ([\d.]+) GB; about ([\d.]+) minutes")
"""What extraction logs of the whole cache after its first block."""
COLUMNS = ["step", "seconds", "cpu_seconds", "memory", "files", "bytes", "estimated_bytes", "estimated_seconds"]
TRAIN_STEPS = ("extract train", "calib.train", "calib.train, AVX2")
"""Steps of `commands` that take the images of train."""


@dataclass(frozen=True)
class Config:
    """Where, and how much of LVIS v1."""

    out: Path
    """Folder to write; without `only` it must not exist."""

    share: float = 1.0
    """Of the images of both splits."""

    classes: int = NUM_CLASSES
    """That the dataset and the detector have."""

    only: str = ""
    """Step to run again in a folder where all have run; its row is replaced, and nothing is checked."""


def main(config: Config) -> None:
    """Makes the dataset, runs the commands, checks the results and saves all figures."""
    rows = [] if config.only else [make_inputs(config)]
    for step, (arguments, out) in commands(config.out, config.classes).items():
        if config.only not in ("", step):
            continue
        if config.only and "--out" in arguments:
            shutil.rmtree(out)
        variables = OTHER_SUMS if out.name == OTHER_HEAD else {}
        rows.append({"step": step, **run(arguments, config.out / f"{step}.log", variables), **size_of(out)})
        print(rows[-1], flush=True)
    train, val = (len(extract.open_cache(str(config.out / f"{split}.zarr"))) for split in IMAGES)
    images = {"dataset": len(list(config.out.glob("data/*2017/*")))} | dict.fromkeys(TRAIN_STEPS, train)
    table = pd.DataFrame(rows, columns=COLUMNS).round(1)
    table.insert(1, "images", table["step"].map(images).fillna(val).astype(int))
    save(RESULTS / "scale.csv", table, ["classes", "step"], config)
    if not config.only:
        save(RESULTS / "scale_checks.csv", pd.DataFrame(check(config.out)), ["classes", "check"], config)


def make_inputs(config: Config) -> dict[str, str | float]:
    """Makes the dataset and the detector's weights; returns the row of this step."""
    started, cpu = time.perf_counter(), time.process_time()
    make_dataset(config.out / "data", config.share, config.classes)
    write_weights(config.out / "detector.safetensors", config.classes)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"step": "dataset", "seconds": wall, "cpu_seconds": cpu, **size_of(config.out / "data")}


def save(file: Path, table: pd.DataFrame, keys: list[str], config: Config) -> None:
    """Writes the rows of a run; others that differ in `keys` stay."""
    table = table.assign(share=config.share, **provenance())
    table.insert(0, "classes", config.classes)
    print(table.to_string(index=False), flush=True)
    merge_into(file, table, keys).sort_values("classes", kind="stable").to_csv(file, index=False)


def commands(out: Path, classes: int) -> dict[str, tuple[list[str], Path]]:
    """Returns each step's arguments to Python, and what it writes."""
    data, train, val, head, run_folder = (str(out / name) for name in ("data", "train.zarr", "val.zarr", "head", "run"))
    extraction = ["-m", "extract", "--detector", DETECTOR, f"num_classes={classes}"]
    extraction += ["--weights", f"{out}/detector.safetensors", "--level", "hidden", "--projection", "0"]
    extraction += ["--images", data, "--batch-size", "16", "--masks", "False"]
    of_train = ["--annotations", f"{data}/train.json", "--min-images-per-class", str(IMAGES_PER_CLASS)]
    of_train += ["--rois-per-class", "2", "--background", "16", "--out", train]
    of_val = ["--annotations", f"{data}/val.json", "--train-annotations", f"{data}/train.json", "--out", val]
    of_val += ["--proposals", str(PROPOSALS)]
    training = ["-m", "calib.train", "--cache", train, "--head-type", "3fc_ft", "--steps", str(STEPS)]
    annotations = ["--annotations", f"{data}/val.json", "--iou-types", "bbox"]
    fusion = ["-m", "fuse", "--cache", val, "--head", head, *annotations, "--out", run_folder]
    return {
        "extract train": ([*extraction, "--split", "train", *of_train], out / "train.zarr"),
        "extract val": ([*extraction, "--split", "val", *of_val], out / "val.zarr"),
        "verify val": (["-m", "extract", "verify", val], out / "val.zarr"),
        "calib.train": ([*training, "--out", head], out / "head"),
        "calib.train, AVX2": ([*training, "--out", f"{out}/{OTHER_HEAD}"], out / OTHER_HEAD),
        "fuse": (fusion, out / "run"),
    }


def run(arguments: list[str], log: Path, variables: dict[str, str]) -> dict[str, float]:
    """Runs a command. Returns times, peak memory in bytes and, of extraction, its estimates of time and size."""
    with log.open("w") as file:
        usage = run_python(arguments, file, subprocess.STDOUT, variables)
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


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
