"""The inputs of the commands that are killed and limited, in a folder `source`, and the content of their output."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import save_file

import calib
import extract.__main__
import fuse.__main__
from benchmarks.minilvis import make
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.paper.setups import MASK_RCNN
from benchmarks.reliability.targets import head_of
from extract.config import DetectorSpec
from extract.detectors import load_detector
from tests.frameworks.torchvision import mask_rcnn as painter
from tests.fuse_fixtures import annotations, tiny_cache, write_tiny
from tests.toy_cache import toy_cache

UNEQUAL = ("metrics.jsonl", "tensorboard")
"""Files of a head that hold times."""
SOURCE, OUT = "source", "out"
CLASSES = 12
PAINTER = ("torchvision:tests.frameworks.torchvision:mask_rcnn", f"num_classes={CLASSES + 1}")
"""A detector with a mask for each class, which a cache cannot hold."""
MODULES = (
    *("calib.train", "extract.extraction", "extract.convert"),
    *("fuse.commands.export", "fuse.commands.predict", "fuse.commands.select"),
)
"""Modules that commands import when they run."""
BLOCKS_IMAGES = 40
"""Training images: three blocks of a cache, so that processes share them."""


def write_sources(folder: Path) -> None:
    """Writes the inputs of all commands, in this process, so that its forks have imported what they need."""
    folder.mkdir()
    with redirect_stdout(io.StringIO()):
        _write_detector(folder / "detector")
        _write_inputs(folder)
        _write_selection(folder / "select")
        _write_painting(folder / "painting", folder / "detector")
    for module in MODULES:
        import_module(module)


def content_of(out: Path) -> dict[str, bytes]:
    """Returns the content of an output's files by name; of a file, its content."""
    if out.is_file():
        return {"": out.read_bytes()}
    files = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not set(UNEQUAL) & set(name.parts)}


def run_fuse(source: Path, out: Path, *arguments: str) -> int:
    """Runs `fuse`, or another command of it on the same inputs."""
    inputs = ["--cache", str(source / "val.zarr"), "--head", str(source / "head")]
    inputs += ["--annotations", str(source / "val.json"), "--out", str(out), "--bootstrap", "0"]
    return fuse.__main__.main([*arguments, *inputs])


def detector_options(detector: Sequence[str], weights: Path) -> list[str]:
    """Returns the options that name a detector."""
    return ["--detector", *detector, "--weights", str(weights), "--device", "cpu"]


def run_extract(data: Path, out: Path, *options: str) -> int:
    """Runs `extract` on the val images of `_write_detector`; `options` name the detector, and may be more."""
    arguments = ["--annotations", str(data / "val.json"), "--train-annotations", str(data / "train.json")]
    arguments += ["--images", str(data / "val"), "--split", "val", "--proposals", "20", "--level", "embedding"]
    return extract.__main__.main([*arguments, "--out", str(out), *options])


def _write_detector(folder: Path) -> None:
    """Writes a few images, random weights of a detector, and a head of it."""
    make.make(make.Config(out=folder, classes=CLASSES, train_images=BLOCKS_IMAGES, eval_images=4, size=112, workers=1))
    torch.manual_seed(0)
    save_file(mask_rcnn(CLASSES).state_dict(), folder / "random.safetensors")
    spec = DetectorSpec(MASK_RCNN, folder / "random.safetensors", None, (f"num_classes={CLASSES}",), device="cpu")
    calib.save_head(head_of(load_detector(spec), CLASSES, seed=0), folder / "head")


def _write_inputs(folder: Path) -> None:
    toy_cache(folder / "train.zarr")
    extract.__main__.main(["export", str(folder / "train.zarr"), str(folder / "train.h5")])
    (folder / "fuse").mkdir()
    write_tiny(folder / "fuse")
    for name, mode in (("a", "original"), ("b", "calibrated")):
        run_fuse(folder / "fuse", folder / "fuse" / name, "--mode", mode)
        shutil.copy(folder / "fuse" / name / "detections.json", folder / "fuse" / f"{name}.json")


def _write_selection(folder: Path) -> None:
    """Writes the caches and annotations of `fuse select`."""
    folder.mkdir()
    train, val = annotations(images=6, seed=0), annotations(images=6, seed=3)
    for name, content in (("train", train), ("val", val)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    tiny_cache(folder / "train.zarr", train, split="train")
    tiny_cache(folder / "holdout.zarr", {**train, "images": train["images"][:2]})
    tiny_cache(folder / "val.zarr", val)


def _write_painting(folder: Path, data: Path) -> None:
    """Writes random weights of `PAINTER`, and its cache of the images of `data`."""
    folder.mkdir()
    torch.manual_seed(0)
    save_file(painter(num_classes=CLASSES + 1).state_dict(), folder / "random.safetensors")
    run_extract(data, folder / "val.zarr", *detector_options(PAINTER, folder / "random.safetensors"))
