"""The readers that `inputs` gives mutated files to."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from PIL import Image as PILImage
from safetensors.torch import save as save_safetensors

import calib
import fuse
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.reliability.mutations import mutate_bytes, mutate_json
from benchmarks.reliability.targets import CLASSES as EXPORTED_CLASSES
from benchmarks.reliability.targets import parts_of, write_export, write_hdf5, write_head
from extract import open_cache
from extract.cache.hdf5 import import_hdf5
from extract.data.annotations import read_annotations
from extract.data.decoding import decode_image
from extract.data.image_files import read_sizes
from extract.detectors.checkpoint_files import read_checkpoint
from fuse.commands.config import Config
from fuse.commands.manifest import MANIFEST_FILE, new_manifest
from fuse.commands.predictions import LINES_FILE, PredictionLines
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.export.checksums import SUMS_FILE
from fuse.ops.masks import encode_bitmaps
from fuse.plugins.torchvision import calibrated
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


def _change_file(file: Path, rng: np.random.Generator) -> None:
    """Mutates a file in place, JSON as a document in most cases."""
    content = file.read_bytes()
    is_json = file.suffix == ".json" and rng.integers(4)
    file.write_bytes(mutate_json(json.loads(content), rng) if is_json else mutate_bytes(content, rng))


def _read_head(folder: Path, rng: np.random.Generator) -> None:
    head = folder / "changed"
    shutil.copytree(folder / "head", head, dirs_exist_ok=True)
    info = json.loads((head / "config.json").read_bytes())
    if rng.integers(2):  # as heads of earlier versions, and of whoever mends the checksums
        del info["config_sha256"], info["head_sha256"]
        (head / "config.json").write_text(json.dumps(info))
    _change_file(head / ("config.json" if rng.integers(3) else "head.safetensors"), rng)
    calib.load_head(head)


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


def _write_caches(folder: Path) -> None:
    toy_cache(folder / "c.zarr", images=4)


def _read_cache(folder: Path, rng: np.random.Generator) -> None:
    """Reads a cache of which a file is changed; half of them without checksums, as of earlier versions."""
    url = folder / "changed.zarr"
    shutil.copytree(folder / "c.zarr", url, dirs_exist_ok=True)
    if rng.integers(2):
        root = json.loads((url / "zarr.json").read_bytes())
        root["attributes"] = {k: v for k, v in root["attributes"].items() if not k.startswith("manifest")}
        (url / "zarr.json").write_text(json.dumps(root))
    files = sorted(url.rglob("zarr.json") if rng.integers(3) else (f for f in url.rglob("*") if f.is_file()))
    _change_file(files[int(rng.integers(len(files)))], rng)
    list(parts_of(open_cache(str(url))))


def _read_hdf5(folder: Path, rng: np.random.Generator) -> None:
    """Changes a dataset, an attribute or the structure; libhdf5 itself is not a subject."""
    import h5py

    file, url = folder / "changed.h5", folder / "imported.zarr"
    shutil.copyfile(folder / "c.h5", file)
    with h5py.File(file, "r+") as content:
        names: list[str] = []
        content.visit(names.append)
        for name in rng.choice(names, int(rng.integers(1, 3))):
            _change_hdf5(content, str(name), rng)
    import_hdf5(file, str(url), overwrite=True)


def _change_hdf5(content, name: str, rng: np.random.Generator) -> None:
    import h5py

    kind, node = int(rng.integers(6)), content.get(name)
    if node is None or kind == 0:
        if node is not None:
            del content[name]
    elif kind == 1:
        key = list(content.attrs)[int(rng.integers(len(content.attrs)))]
        header = content.attrs[key]
        text = header.decode() if isinstance(header, bytes) else str(header)
        content.attrs[key] = mutate_bytes(text.encode(), rng).replace(b"\x00", b"0")
    elif kind == 2 and isinstance(node, h5py.Dataset):
        values = node[...]
        del content[name]
        content[name] = values.reshape(-1)[: int(rng.integers(values.size + 1))]
    elif kind == 3 and isinstance(node, h5py.Dataset):
        values = node[...]
        del content[name]
        kinds = (np.float64, np.int8, np.complex64, "S3")
        content[name] = np.zeros(values.shape, kinds[int(rng.integers(len(kinds)))])
    elif isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf" and node.size:
        values = node[...]
        flat = values.reshape(-1).view(np.uint8)
        flat[int(rng.integers(len(flat)))] ^= int(rng.integers(1, 256))
        node[...] = values


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


def _read_manifest(folder: Path, rng: np.random.Generator) -> None:
    """Reads the run.json of results, to compare it with the options of a command."""
    config = Config(cache="val.zarr", out=folder, annotations=folder / "val.json", mode="original")
    file = folder / MANIFEST_FILE
    file.unlink(missing_ok=True)
    document = msgspec.json.decode(new_manifest(config, cache_fingerprint="0"))
    file.write_bytes(mutate_json(document, rng))
    new_manifest(config, cache_fingerprint="0")


def _read_lines(folder: Path, rng: np.random.Generator) -> None:
    """Reads the lines of an interrupted `fuse predict`, and finishes them."""
    file, options = folder / LINES_FILE, {"mode": "cat"}
    file.unlink(missing_ok=True)
    lines = PredictionLines(folder, options)
    for name in ("a", "b"):
        lines.append(name, [{"image_id": 1, "score": 0.5}])
    file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    lines = PredictionLines(folder, options)
    lines.finish([name for name in ("a", "b") if name in lines], folder / "predictions.json")


def _read_export(folder: Path, rng: np.random.Generator) -> None:
    """Loads an export whose checksums were removed."""
    out, name = folder / "changed", ("calibration.json", "model.pth")[int(rng.integers(8) == 0)]
    if not out.exists():
        shutil.copytree(folder / "out", out)
        (out / SUMS_FILE).unlink()
    for file in ("calibration.json", "model.pth"):
        if not (out / file).samefile(folder / "out" / file):
            (out / file).unlink()
            (out / file).hardlink_to(folder / "out" / file)
    content = (out / name).read_bytes()
    (out / name).unlink()
    (out / name).write_bytes(content)
    _change_file(out / name, rng)
    calibrated(mask_rcnn(EXPORTED_CLASSES), out)


READERS = (
    Reader("annotations", lambda _: None, _read_annotations, 0.25),
    Reader("results", lambda _: None, _read_results, 0.15),
    Reader("annotations and results, evaluated", _compile, _evaluate, 0.15),
    Reader("head", lambda folder: write_head(folder / "head", 0), _read_head, 0.08),
    Reader("detector weights", _write_weights, _read_weights, 0.1),
    Reader("cache", _write_caches, _read_cache, 0.1),
    Reader("HDF5", lambda folder: write_hdf5(folder, 0), _read_hdf5, 0.03),
    Reader("images", _write_images, _read_image, 0.1),
    Reader("run.json", lambda _: None, _read_manifest, 0.02),
    Reader("interrupted predictions", lambda _: None, _read_lines, 0.01),
    Reader("exported detector", lambda folder: write_export(folder / "out", 0), _read_export, 0.01),
)
