"""The outputs that `damage` damages: how each is written, and read as a whole."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

import calib
import fuse.__main__
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.paper.setups import MASK_RCNN
from calib.checkpoint import load_checkpoint, save_checkpoint
from calib.heads import Head, HeadInfo
from extract import RoICache, open_cache
from extract.cache.hdf5 import export_hdf5, import_hdf5
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.detectors.base import Detector
from fuse.plugins.torchvision import calibrated
from tests.fuse_fixtures import annotations, tiny_cache
from tests.toy_cache import toy_cache

CLASSES = 12


class Target(NamedTuple):
    """A kind of output.

    Attributes:
        name: for the table.
        write: (folder, seed) writes one; outputs of other seeds differ in their values only.
        read: folder → all that is in it, as bytes.
        share: of the trials.
    """

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], Iterator[bytes]]
    share: float


def _read_cache(folder: Path) -> Iterator[bytes]:
    return parts_of(open_cache(str(folder / "c.zarr")))


def parts_of(cache: RoICache) -> Iterator[bytes]:
    """Yields all that a cache holds."""
    yield cache.fingerprint.encode()
    yield repr(cache.class_map).encode()
    for rois in cache:
        for field in ("image_id", "height", "width", "flipped", *cache.columns):
            yield np.asarray(getattr(rois, field)).tobytes()
    for stage in range(len(cache.stages)):
        for weight, bias in cache.fc_layers(stage):
            yield weight.tobytes() + bias.tobytes()
    for projection in cache.projections:
        yield projection.directions.tobytes() + projection.center.tobytes()


def _write_hidden(folder: Path, seed: int) -> None:
    toy_cache(folder / "c.zarr", "hidden", (0.5, 0.6), images=8, seed=seed, projection=5)


def write_hdf5(folder: Path, seed: int) -> None:
    """Writes c.h5, a cache in one file."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        export_hdf5(toy_cache(Path(work) / "c.zarr", images=8, seed=seed), folder / "c.h5")


def _read_hdf5(folder: Path) -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as work:
        yield from parts_of(import_hdf5(folder / "c.h5", f"{work}/c.zarr"))


def _head(seed: int) -> Head:
    head = Head(HeadInfo("2fc_rand", "embedding", (8,), (8, 16, 4), 0, (1, 2, 3), tuple("abc"), (1, 1, 1), (0.5,)))
    return _with_random_weights(head, seed)


def _with_random_weights(head: Head, seed: int) -> Head:
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return head


def write_head(folder: Path, seed: int) -> None:
    """Writes a head with random weights."""
    calib.save_head(_head(seed), folder)


def _read_head(folder: Path) -> Iterator[bytes]:
    head = calib.load_head(folder)
    yield json.dumps(asdict(head.info), sort_keys=True).encode()
    yield from _tensors(head)


def _write_checkpoint(folder: Path, seed: int) -> None:
    folder.mkdir()
    head, optimizer, scaler = _training(seed)
    save_checkpoint(folder, 7, head, optimizer, scaler)


def _read_checkpoint(folder: Path) -> Iterator[bytes]:
    head, optimizer, scaler = _training(5)
    step = load_checkpoint(folder, head, optimizer, scaler)
    if step == 0:
        raise FileNotFoundError(f"{folder}: no checkpoint, training begins anew")
    yield json.dumps([step, scaler.state_dict()]).encode()
    yield from _tensors(head)
    for state in optimizer.state.values():
        yield state["momentum_buffer"].numpy().tobytes()


def _training(seed: int) -> tuple[Head, torch.optim.Optimizer, torch.amp.GradScaler]:
    head = _head(seed)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for parameter in head.parameters():
        optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone() + 1
    return head, optimizer, torch.amp.GradScaler("cpu", enabled=False)


def head_of(detector: Detector, classes: int, seed: int) -> Head:
    """Returns a linear head with random weights, of Mini-LVIS's detector."""
    names, description = tuple(f"class {i}" for i in range(classes)), detector.description
    info = HeadInfo(
        *("linear", "embedding", (256,), (256, classes + 1), 0, tuple(range(1, classes + 1)), names),
        *((1, 1000) * (classes // 2), detector.stages),
        **{key: description[key] for key in ("weights_sha256", "tensors_sha256", "settings")},
    )
    return _with_random_weights(Head(info), seed)


def write_export(folder: Path, seed: int) -> None:
    """Exports a torchvision detector of random weights with a random head."""
    with tempfile.TemporaryDirectory() as name:
        work, options = Path(name), (f"num_classes={CLASSES}",)
        torch.manual_seed(seed)
        weights = work / "weights.safetensors"
        save_file(mask_rcnn(CLASSES).state_dict(), weights)
        detector = load_detector(DetectorSpec(MASK_RCNN, weights, None, options, device="cpu"))
        calib.save_head(head_of(detector, CLASSES, seed), work / "head")
        arguments = ["export", "--detector", MASK_RCNN, "--weights", str(weights), "--device", "cpu"]
        with redirect_stdout(io.StringIO()):
            fuse.__main__.main([*arguments, "--head", str(work / "head"), "--out", str(folder), *options])


def _read_export(folder: Path) -> Iterator[bytes]:
    model = calibrated(mask_rcnn(CLASSES), folder)
    yield repr(model.options).encode()
    yield from _tensors(model)
    yield (folder / "scores.pt2").read_bytes()
    yield (folder / "classes.json").read_bytes()


def _tensors(model: torch.nn.Module) -> Iterator[bytes]:
    for name, tensor in model.state_dict().items():
        yield name.encode() + tensor.numpy().tobytes()


TARGETS = (
    Target("cache, pooled", lambda f, seed: toy_cache(f / "c.zarr", images=20, seed=seed), _read_cache, 0.36),
    Target("cache, hidden, 2 stages", _write_hidden, _read_cache, 0.2),
    Target("cache with masks", lambda f, seed: tiny_cache(f / "c.zarr", annotations(seed=seed)), _read_cache, 0.1),
    Target("cache as HDF5 file", write_hdf5, _read_hdf5, 0.1),
    Target("head", write_head, _read_head, 0.1),
    Target("checkpoint", _write_checkpoint, _read_checkpoint, 0.1),
    Target("export to torchvision", write_export, _read_export, 0.04),
)
