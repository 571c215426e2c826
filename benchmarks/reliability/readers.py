"""The readers that `inputs` gives mutated files to."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from safetensors.torch import save as save_safetensors

import fuse
from benchmarks.reliability.mutations import mutate_bytes, mutate_json
from benchmarks.reliability.output_readers import (
    read_cache,
    read_export,
    read_hdf5,
    read_head,
    read_lines,
    read_manifest,
)
from benchmarks.reliability.targets import write_export, write_hdf5, write_head
from extract.data.annotations import read_annotations
from extract.data.decoding import decode_image
from extract.data.image_files import read_sizes
from extract.detectors.checkpoint_files import read_checkpoint
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.ops.masks import encode_bitmaps
from tests.fuse_fixtures import CLASSES, SIZE, annotations, as_coco
from tests.toy_cache import toy_cache


class Reader(NamedTuple):
    """What reads a kind of file.

    Attributes:
        name: for the table.
        prepare: writes to a folder what `read` changes.
        read: mutates a file of the folder by the generator, and reads it.
        share: of the inputs.
    """

    name: str
    prepare: Callable[[Path], object]
    read: Callable[[Path, np.random.Generator], object]
    share: float


def _documents(rng: np.random.Generator) -> dict:
    content = annotations(images=3)
    return as_coco(content) if rng.integers(2) else content


def _read_annotations(folder: Path, rng: np.random.Generator) -> None:
    file = folder / "val.json"
    file.write_bytes(mutate_json(_documents(rng), rng))
    (read_annotations if rng.integers(2) else load_annotations)(file)


def _results(content: dict, masks: bool) -> list[dict]:
    keys = ("image_id", "category_id", "bbox")
    records = [{key: one[key] for key in keys} | {"score": 0.5} for one in content["annotations"]]
    if not masks:
        return records
    (rle,) = encode_bitmaps(np.ones((1, *SIZE), bool))
    return [record | {"segmentation": rle} for record in records]


def _read_results(folder: Path, rng: np.random.Generator) -> Detections:
    file = folder / "results.json"
    file.write_bytes(mutate_json(_results(annotations(images=2), bool(rng.integers(2))), rng))
    return Detections.from_json(file)


def _compile(_: Path) -> None:
    """Loads the kernels of the evaluation, or compiles them, before inputs are timed."""
    content = annotations(images=2)
    masks = encode_bitmaps(np.ones((len(content["annotations"]), *SIZE), bool))
    columns = [np.array([one[key] for one in content["annotations"]]) for key in ("image_id", "category_id", "bbox")]
    detections = Detections(*columns[:2], np.ones(len(masks), np.float32), columns[2].astype(np.float32), masks)
    for dataset in (content, as_coco(content)):
        fuse.evaluate(dataset, detections, CLASSES, iou_type=("bbox", "segm"))


def _evaluate(folder: Path, rng: np.random.Generator) -> None:
    """Evaluates what the readers accept: one file is changed, and once, since most changes are refused."""
    content = _documents(rng)
    results = _results(content, bool(rng.integers(2)))
    changed = [lambda one: mutate_json(one, rng, edits=1), lambda one: json.dumps(one).encode()]
    first, second = changed if rng.integers(2) else changed[::-1]
    (folder / "val.json").write_bytes(first(content))
    (folder / "results.json").write_bytes(second(results))
    detections, dataset = Detections.from_json(folder / "results.json"), load_annotations(folder / "val.json")
    try:
        fuse.evaluate(dataset, detections, CLASSES)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None  # of content, whose source is the caller's


def _write_weights(folder: Path) -> None:
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.float16)}
    torch.save({"model": state, "epoch": 3}, folder / "zip.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    (folder / "arrays.pkl").write_bytes(pickle.dumps({"model": arrays}))
    (folder / "weights.safetensors").write_bytes(save_safetensors(state))


def _read_weights(folder: Path, rng: np.random.Generator) -> None:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("changed"))
    source = files[int(rng.integers(len(files)))]
    file = folder / f"changed{source.suffix}"
    file.write_bytes(mutate_bytes(source.read_bytes(), rng))
    read_checkpoint(file)


MODES = {"png": "P", "jpg": "RGB", "tif": "L", "gif": "P", "bmp": "RGB", "webp": "RGBA"}
"""Suffixes of images → their modes; that of the TIFF file has 16 bits."""


def _write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    images = {"tif": PILImage.fromarray(pixels[..., 0].astype(np.uint16) * 200)}
    for suffix, mode in MODES.items():
        images.get(suffix, PILImage.fromarray(pixels).convert(mode)).save(folder / f"image.{suffix}")


def _read_image(folder: Path, rng: np.random.Generator) -> None:
    suffix = list(MODES)[int(rng.integers(len(MODES)))]
    file = folder / f"changed.{suffix}"
    file.write_bytes(mutate_bytes((folder / f"image.{suffix}").read_bytes(), rng))
    read_sizes(folder, [(file.name,)])
    decode_image(file)


READERS = (
    Reader("annotations", lambda _: None, _read_annotations, 0.25),
    Reader("results", _compile, _read_results, 0.15),
    Reader("annotations and results, evaluated", _compile, _evaluate, 0.15),
    Reader("head", lambda folder: write_head(folder / "head", 0), read_head, 0.08),
    Reader("detector weights", _write_weights, _read_weights, 0.1),
    Reader("cache", lambda folder: toy_cache(folder / "c.zarr", images=4), read_cache, 0.1),
    Reader("HDF5", lambda folder: write_hdf5(folder, 0), read_hdf5, 0.03),
    Reader("images", _write_images, _read_image, 0.1),
    Reader("run.json", lambda _: None, read_manifest, 0.02),
    Reader("interrupted predictions", lambda _: None, read_lines, 0.01),
    Reader("exported detector", lambda folder: write_export(folder / "out", 0), read_export, 0.01),
)
