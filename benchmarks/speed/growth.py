"""How time grows with RoIs, classes, images and the size of a cache: the plots of docs/performance.md.

    python -m benchmarks.speed.growth

Everything runs on one thread. Caches are measured up to 2 GB; beyond, a line through the measured points is drawn
dashed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from benchmarks.provenance import provenance
from benchmarks.speed import inputs
from benchmarks.speed.evaluation import make_annotations, make_detections
from benchmarks.speed.measure import RESULTS, seconds
from benchmarks.speed.nms import standard_path
from extract import RoICache, open_cache, write_cache
from extract.class_scores import softmax
from fuse import class_nms, detect, evaluate

DOCS = Path(__file__).parents[2] / "docs"
ROIS = (100, 200, 500, 1000, 2000, 4000)
CLASSES = (80, 240, 1230, 5000, 20000)
IMAGES = (50, 100, 200, 400, 800)
CACHE_IMAGES = (16, 32, 64, 96)
EXTRAPOLATED_GB = (1, 2, 4, 8, 16, 32, 64)
STANDARD_PATH_CANDIDATES = 2_500_000
"""With more, the standard path takes minutes and is left out."""
STEP_ROIS = 512
EXTRAPOLATED = " (extrapolated)"
AXES = {
    "rois": ("RoIs in an image, 1,230 classes", "seconds per image"),
    "classes": ("classes, 1,000 RoIs", "seconds per image or step"),
    "images": ("images of val, 1,230 classes", "seconds"),
    "cache": ("gigabytes of features", "seconds"),
}
"""Labels of both axes, by plot."""


class Point(NamedTuple):
    """One row of growth.csv: `x` is the quantity on the plot's horizontal axis, `time` in seconds."""

    plot: str
    series: str
    x: float
    time: float


def main() -> None:
    """Measures, saves the points and draws the plots."""
    torch.set_num_threads(1)
    points = [point for measure in (by_rois, by_classes, by_images, by_cache_size) for point in measure()]
    table = pd.DataFrame(points).assign(**provenance())
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / "growth.csv", index=False, float_format="%.4g")
    draw(table)
    print(table.to_string(index=False))


def by_rois() -> Iterator[Point]:
    """Times NMS of one image."""
    for rois in ROIS:
        for series, time in time_nms(rois, 1230):
            yield Point("rois", series, rois, time)


def by_classes() -> Iterator[Point]:
    """Times NMS of one image, and a training step of a linear head."""
    for classes in CLASSES:
        for series, time in time_nms(1000, classes):
            yield Point("classes", series, classes, time)
        yield Point("classes", f"step of a linear head, {STEP_ROIS} RoIs", classes, time_linear_step(classes))


def by_images() -> Iterator[Point]:
    """Times detection from a cache of logits, and evaluation of boxes."""
    classes = inputs.lvis_classes()
    with tempfile.TemporaryDirectory() as folder:
        for images in IMAGES:
            cache = make_cache(Path(folder, "logits.zarr"), images, rois=300, level="logits")
            yield Point("images", "fuse.detect, 300 RoIs", images, best(partial(detect, cache, mode="original"), 1))
            annotations = make_annotations(classes, images)
            detections = make_detections(annotations, classes, masks=False)
            time = best(partial(evaluate, annotations, detections, classes), 1)
            yield Point("images", "fuse.evaluate, boxes", images, time)


def by_cache_size() -> Iterator[Point]:
    """Times writing, opening and reading pooled features."""
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        for images in CACHE_IMAGES:
            path = Path(folder, "pooled.zarr")
            written = seconds(partial(make_cache, path, images, rois=800, level="pooled"))
            cache = open_cache(str(path))
            gigabytes = int(cache.offsets[-1]) * 12544 * 2 / 1e9
            points += [
                Point("cache", "write", gigabytes, written),
                Point("cache", "open", gigabytes, best(partial(open_cache, str(path)), 3)),
                Point("cache", "read", gigabytes, best(partial(cache.read, "features"), 1)),
            ]
    for series in ("write", "open", "read"):
        measured = [point for point in points if point.series == series]
        yield from measured
        yield from extrapolate(measured)


def extrapolate(points: list[Point]) -> Iterator[Point]:
    """Fits a straight line to the points of one series."""
    slope, start = np.polyfit([point.x for point in points], [point.time for point in points], 1)
    for x in EXTRAPOLATED_GB:
        yield Point("cache", points[0].series + EXTRAPOLATED, x, float(max(start, 0) + slope * x))


def time_nms(rois: int, classes: int) -> Iterator[tuple[str, float]]:
    """Times `class_nms` with and without a cap and, unless it takes minutes, the standard path, at threshold 0.0."""
    boxes, scores = inputs.proposals(rois), softmax(inputs.logits(rois, classes))
    yield "class_nms, 300 kept", best(partial(class_nms, boxes, scores), 5)
    yield "class_nms, all kept", best(partial(class_nms, boxes, scores, max_detections=None), 2)
    if rois * classes <= STANDARD_PATH_CANDIDATES:
        yield "torchvision.ops.batched_nms", seconds(partial(standard_path, boxes, scores, 0.0, 300))


def time_linear_step(classes: int) -> float:
    """Times forward pass, backward pass and update of a classifier on embeddings."""
    layer = torch.nn.Linear(1024, classes + 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    embeddings, labels = torch.randn(STEP_ROIS, 1024), torch.arange(STEP_ROIS) % (classes + 1)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(layer(embeddings), labels).backward()
        optimizer.step()

    return best(step, 5)


def make_cache(path: Path, images: int, rois: int, level: str) -> RoICache:
    """Writes a val cache whose images all have the same made-up RoIs."""
    classes = inputs.lvis_classes()
    if level == "pooled":
        classes = classes[:80].reset_index(drop=True)
    rng = np.random.default_rng(0)
    features = rng.random((rois, 1, 256, 7, 7), np.float32).astype(np.float16) if level == "pooled" else None
    logits = inputs.logits(rois, len(classes))
    first = inputs.make_rois(1, inputs.proposals(rois), logits, features=features)
    every = [replace(first, image_id=i + 1) for i in range(images)]
    return write_cache(str(path), every, classes, split="val", level=level, overwrite=True)


def best(function: Callable[[], object], rounds: int) -> float:
    """Returns the shortest time of several calls in seconds, after a call that compiles."""
    function()
    return min(seconds(function) for _ in range(rounds))


def draw(table: pd.DataFrame) -> None:
    """Writes docs/growth_<plot>.svg for every plot, both axes logarithmic."""
    for plot, points in table.groupby("plot", sort=False):
        plt.rcParams["svg.hashsalt"] = plot
        figure, axes = plt.subplots(figsize=(6, 4))
        for series, part in points.groupby("series", sort=False):
            axes.loglog(part["x"], part["time"], "--" if series.endswith(EXTRAPOLATED) else "o-", label=series)
        axes.set(xlabel=AXES[plot][0], ylabel=AXES[plot][1])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(DOCS / f"growth_{plot}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
