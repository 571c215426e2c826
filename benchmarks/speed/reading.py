"""Reads an annotation file of LVIS v1's size for extraction and for evaluation, against the official packages.

    python -m benchmarks.speed.reading
    python -m benchmarks.speed.reading --images 15000 --annotations 190000

The file is made up: as many images, annotations and categories as LVIS v1 train has, polygons of 33 points on average,
0.9 GB. pycocotools and lvis parse the file and build their indices, and neither checks it. Times are processor time.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import tyro
from pycocotools.coco import COCO

from benchmarks.speed.inputs import SIZE
from benchmarks.speed.measure import Result, peak_memory, result, save, timing
from extract.data.annotations import read_annotations
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.engines import import_lvis

CATEGORIES = 1203
CHUNK = 10_000
POINTS = (6, 60)
"""Points of a polygon, fewest and most."""


def main(images: int = 100_170, annotations: int = 1_270_141) -> None:
    """Times both readers once each beside their baselines, and saves the results."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis.json"
        write_file(path, images, annotations)
        size = f"{annotations:,} annotations, {path.stat().st_size / 1e9:.1f} GB"
        lvis = import_lvis().LVIS
        cases: list[tuple[str, Callable[[], object], str, Callable[[], object]]] = [
            (f"read_annotations, {size}", partial(read_annotations, path), "pycocotools", partial(_quiet, COCO, path)),
            (f"load_annotations, {size}", partial(load_annotations, path), "the lvis package", partial(lvis, path)),
        ]
        save("reading", [_time(*case) for case in cases])


def write_file(path: Path, images: int, annotations: int, seed: int = 0) -> None:
    """Writes an annotation file with LVIS's fields."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    owners = np.sort(rng.integers(1, images + 1, annotations))
    categories = (CATEGORIES * rng.random(annotations) ** 3).astype(int) + 1
    image_records = [
        {
            "id": i,
            "height": height,
            "width": width,
            "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            "neg_category_ids": rng.integers(1, CATEGORIES + 1, 10).tolist(),
            "not_exhaustive_category_ids": [],
        }
        for i in range(1, images + 1)
    ]
    names = [{"id": k, "name": f"class_{k}", "frequency": "rcf"[k % 3]} for k in range(1, CATEGORIES + 1)]
    encode = msgspec.json.encode
    with path.open("wb") as file:
        file.write(b'{"images":' + encode(image_records) + b',"categories":' + encode(names) + b',"annotations":[')
        for first in range(0, annotations, CHUNK):
            ids = range(first + 1, min(first + CHUNK, annotations) + 1)
            records = [_annotation(rng, i, int(owners[i - 1]), int(categories[i - 1])) for i in ids]
            file.write((b"," if first else b"") + encode(records)[1:-1])
        file.write(b"]}")


def _annotation(rng: np.random.Generator, number: int, image_id: int, category_id: int) -> dict[str, object]:
    height, width = SIZE
    x, y = (rng.random(2) * (width - 40, height - 40)).tolist()
    w, h = (8 + rng.random(2) * (width - x - 8, height - y - 8) * 0.5).tolist()
    polygon = (rng.random((rng.integers(*POINTS), 2)) * (w, h) + (x, y)).round(2).ravel()
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(x, 2), round(y, 2), round(w, 2), round(h, 2)],
        "area": round(w * h / 2, 2),
        "segmentation": [polygon.tolist()],
    }


def _time(case: str, read: Callable[[], object], baseline: str, read_baseline: Callable[[], object]) -> Result:
    """Times one call of each; the memory is that of the same call."""
    times: list[float] = []

    def timed(function: Callable[[], object]) -> None:
        started = time.process_time()
        function()
        times.append(time.process_time() - started)

    memory = [peak_memory(partial(timed, function)) for function in (read, read_baseline)]
    return result(case, baseline, timing([(times[0], times[1])], *memory))


def _quiet(function: Callable[[str], object], path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        function(str(path))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
