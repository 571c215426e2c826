"""The same cache through this library, Zarr, xarray and readers in other languages: which values each gives.

    pip install tensorstore zarrs xarray && npm install --prefix build/js zarrita @zarrita/storage
    python -m benchmarks.crossing.readers                   # readers that are not installed are left out

Reads the first `ROWS` RoIs of every RoI array of a cache made of Mini-LVIS's plain detector's, the class table and the
detector's layers. Writes `benchmarks/results/crossing_readers.csv`: the arrays whose bytes are equal to those that
Zarr's own reader returns, and why the others are not read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

import extract
from benchmarks.crossing.registry import RESULTS, installed_version
from benchmarks.provenance import provenance
from benchmarks.speed.measure import merge_into
from extract.utils.errors import one_line

FILE = RESULTS / "crossing_readers.csv"
SOURCE = "data/plain/val.zarr"
IMAGES, ROWS = 8, 1000
JS_FOLDER, JS_READER = Path("build/js"), Path(__file__).with_name("reader.mjs")
OWN_NAMES = {
    "proposal": "proposals",
    "box": "boxes",
    "logit": "logits",
    "feature": "features",
    "label": "labels",
    "iou": "ious",
    "gt_id": "gt_ids",
    "mask": "masks",
}
"""Array of the format → field of `RoICache.read`, where the names differ."""

Sums = dict[str, str]
"""Array's path in the cache → sha256 of its first `ROWS` rows, or the error that its reader raised."""


def main() -> None:
    """Reads the cache with every reader that is installed, and saves their rows."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/cache.zarr"
        copy_cache(url)
        paths = list_arrays(url)
        expected = read_zarr(url, paths)
        rows = [row(name, url, paths, expected) for name in READERS if package_version(name)]
    table = merge_into(FILE, pd.DataFrame(rows).assign(**provenance()), ["reader"])
    table.to_csv(FILE, index=False)
    print(table.to_string(index=False))


def copy_cache(url: str) -> None:
    """Writes a cache of the first images of `SOURCE`."""
    source = extract.open_cache(SOURCE)
    extract.write_cache(
        url,
        [source[i] for i in range(IMAGES)],
        source.classes,
        split=source.split,
        level=source.level,
        stages=source.stages,
        fc_layers=[source.fc_layers(stage) for stage in range(len(source.stages))],
        detector=source.detector,
        provenance=source.provenance,
    )


def list_arrays(url: str) -> list[str]:
    """Returns the paths of all RoI arrays, and of the class table's and the layers'."""
    members = zarr.open_group(url, mode="r").members(max_depth=None)
    arrays = {path: member.metadata.dimension_names for path, member in members if isinstance(member, zarr.Array)}
    return sorted(
        path for path, names in arrays.items() if names[0] == "roi" or path.startswith(("classes/", "detector/"))
    )


def row(name: str, url: str, paths: list[str], expected: Sums) -> dict[str, str | int]:
    """Returns one reader's row."""
    sums = READERS[name][1](url, paths)
    equal = [path for path in paths if sums.get(path) == expected[path]]
    others = {path: sums.get(path, "not read") for path in paths if path not in equal}
    reasons: dict[str, list[str]] = {}
    for path, reason in others.items():
        reasons.setdefault("other values" if len(reason) == 64 else reason, []).append(path)
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return {
        "reader": name,
        "language": READERS[name][0],
        "version": package_version(name),
        "arrays": len(paths),
        "equal": len(equal),
        "others": text,
    }


def digest(values: np.ndarray) -> str:
    """Returns the sha256 of an array's first `ROWS` rows."""
    return sha256(np.ascontiguousarray(values[:ROWS]).tobytes()).hexdigest()


def attempt(read: Callable[[str], np.ndarray], paths: list[str]) -> Sums:
    """Returns the digests of what `read` gives for each path."""
    sums = {}
    for path in paths:
        try:
            sums[path] = digest(read(path))
        except Exception as error:  # a reader's errors are of any kind
            sums[path] = f"{type(error).__name__}: {one_line(error)[:120]}"
    return sums


def read_zarr(url: str, paths: list[str]) -> Sums:
    """zarr-python."""
    group = zarr.open_group(url, mode="r")
    return attempt(lambda path: np.asarray(group[path][:ROWS]), paths)


def read_tailcal(url: str, paths: list[str]) -> Sums:
    """This library."""
    cache = extract.open_cache(url)

    def read(path: str) -> np.ndarray:
        if path.startswith("classes/"):
            return cache.classes[path.split("/")[1]].to_numpy()
        if path.startswith("detector/"):
            _, stage, name = path.split("/")
            kind, layer = name.rsplit("_", 1)
            return cache.fc_layers(int(stage.rsplit("_", 1)[1]))[int(layer)][kind == "bias"]
        if path == "image":
            return np.repeat(np.arange(len(cache), dtype=np.int32), np.diff(cache.offsets))
        values = cache.read(OWN_NAMES.get(path, path))
        return values.astype(np.uint8) if values.dtype == bool else values

    return attempt(read, paths)


def read_xarray(url: str, paths: list[str]) -> Sums:
    """xarray, the whole tree."""
    import xarray

    tree = xarray.open_datatree(url, engine="zarr", consolidated=False, mask_and_scale=False)
    return attempt(lambda path: tree[path].to_numpy(), paths)


def read_zarrs(url: str, paths: list[str]) -> Sums:
    """zarrs, in place of zarr-python's own codecs."""
    import zarrs  # noqa: F401  registers its pipeline

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        group = zarr.open_group(url, mode="r")
        return attempt(lambda path: np.asarray(group[path][:ROWS]), paths)


def read_tensorstore(url: str, paths: list[str]) -> Sums:
    """tensorstore."""
    import tensorstore

    def read(path: str) -> np.ndarray:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{url}/{path}/"}}
        array = tensorstore.open(spec, read=True).result()
        return np.asarray(array[: min(ROWS, array.shape[0])].read().result())

    return attempt(read, paths)


def read_zarrita(url: str, paths: list[str]) -> Sums:
    """zarrita, in Node.js, which looks for packages beside the script."""
    script = shutil.copy(JS_READER, JS_FOLDER)
    call = ["node", str(script), url, str(ROWS), *paths]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


READERS: dict[str, tuple[str, Callable[[str, list[str]], Sums]]] = {
    "tailcal": ("Python", read_tailcal),
    "zarr": ("Python", read_zarr),
    "xarray": ("Python", read_xarray),
    "zarrs": ("Rust", read_zarrs),
    "tensorstore": ("C++", read_tensorstore),
    "zarrita": ("JavaScript", read_zarrita),
}
"""Package → its language and its function."""


def package_version(name: str) -> str:
    """Returns the version of a reader's package, "" if it is not installed."""
    if name == "zarrita":
        package = JS_FOLDER / "node_modules" / name / "package.json"
        return json.loads(package.read_text())["version"] if package.is_file() else ""
    return installed_version(name)


if __name__ == "__main__":
    main()
