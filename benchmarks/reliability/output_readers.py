"""What reads outputs of this library, each given a file that is changed: heads, caches, exports, results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import msgspec
import numpy as np

import calib
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.reliability.mutations import mutate_bytes, mutate_json
from benchmarks.reliability.targets import CLASSES, parts_of
from extract import open_cache
from extract.cache.hdf5 import import_hdf5
from fuse.commands.config import Config
from fuse.commands.manifest import MANIFEST_FILE, new_manifest
from fuse.commands.predictions import LINES_FILE, PredictionLines
from fuse.export.checksums import SUMS_FILE
from fuse.plugins.torchvision import calibrated


def _change_file(file: Path, rng: np.random.Generator) -> None:
    """Mutates a file in place, JSON as a document in most cases."""
    content = file.read_bytes()
    is_json = file.suffix == ".json" and rng.integers(4)
    file.write_bytes(mutate_json(json.loads(content), rng) if is_json else mutate_bytes(content, rng))


def read_head(folder: Path, rng: np.random.Generator) -> None:
    """Loads a head, half of them without checksums, as of earlier versions."""
    head = folder / "changed"
    shutil.copytree(folder / "head", head, dirs_exist_ok=True)
    info = json.loads((head / "config.json").read_bytes())
    if rng.integers(2):
        del info["config_sha256"], info["head_sha256"]
        (head / "config.json").write_text(json.dumps(info))
    _change_file(head / ("config.json" if rng.integers(3) else "head.safetensors"), rng)
    calib.load_head(head)


def read_cache(folder: Path, rng: np.random.Generator) -> None:
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


def read_hdf5(folder: Path, rng: np.random.Generator) -> None:
    """Changes a dataset, an attribute or the structure; libhdf5 itself is not a subject."""
    file, url = folder / "changed.h5", folder / "imported.zarr"
    shutil.copyfile(folder / "c.h5", file)
    with h5py.File(file, "r+") as content:
        names: list[str] = []
        content.visit(names.append)
        for name in rng.choice(names, int(rng.integers(1, 3))):
            _change_hdf5(content, str(name), rng)
    import_hdf5(file, str(url), overwrite=True)


def _change_hdf5(content: h5py.File, name: str, rng: np.random.Generator) -> None:
    kind, node = int(rng.integers(6)), content.get(name)
    if node is None or kind == 0:
        if node is not None:
            del content[name]
    elif kind == 1:
        key = list(content.attrs)[int(rng.integers(len(content.attrs)))]
        header = content.attrs[key]
        text = header.decode() if isinstance(header, bytes) else str(header)
        content.attrs[key] = mutate_bytes(text.encode(errors="surrogateescape"), rng).replace(b"\x00", b"0")
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


def read_manifest(folder: Path, rng: np.random.Generator) -> None:
    """Reads the run.json of results, to compare it with the options of a command."""
    config = Config(cache="val.zarr", out=folder, annotations=folder / "val.json", mode="original")
    file = folder / MANIFEST_FILE
    file.unlink(missing_ok=True)
    document = msgspec.json.decode(new_manifest(config, cache_fingerprint="0"))
    file.write_bytes(mutate_json(document, rng))
    new_manifest(config, cache_fingerprint="0")


def read_lines(folder: Path, rng: np.random.Generator) -> None:
    """Reads the lines of an interrupted `fuse predict`, and finishes them."""
    file, options = folder / LINES_FILE, {"mode": "cat"}
    file.unlink(missing_ok=True)
    lines = PredictionLines(folder, options)
    for name in ("a", "b"):
        lines.append(name, [{"image_id": 1, "score": 0.5}])
    file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    lines = PredictionLines(folder, options)
    lines.finish([name for name in ("a", "b") if name in lines], folder / "predictions.json")


def read_export(folder: Path, rng: np.random.Generator) -> None:
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
    calibrated(mask_rcnn(CLASSES), out)
