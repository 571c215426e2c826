"""How cost grows with RoIs, classes, images and the size of a cache: figures and plots of docs/performance.md.

    python -m benchmarks.speed.growth

Everything runs on one thread. Caches are measured up to 2 GB; what lies beyond is a straight line through the measured
points, and dashed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from benchmarks.speed.evaluation import annotations, detections
from benchmarks.speed.inputs import logits, lvis_classes, proposals
from benchmarks.speed.measure import RESULTS, seconds
from benchmarks.speed.suppression import standard
from calib.scoring import softmax
from extract import RoICache, RoIs, open_cache, write_cache
from fuse import class_nms, detect, evaluate

DOCS = Path(__file__).parents[2] / "docs"
ROIS = (100, 200, 500, 1000, 2000, 4000)
CLASSES = (80, 240, 1230, 5000, 20000)
IMAGES = (50, 100, 200, 400, 800)
CACHE_IMAGES = (16, 32, 64, 96)
GIGABYTES = (1, 2, 4, 8, 16, 32, 64)
STANDARD_UP_TO = 2_500_000  # candidates; beyond, the standard path takes minutes
STEP_ROIS = 512
TITLES = {
    "rois": ("RoIs of an image, 1,230 classes", "seconds an image"),
    "classes": ("classes, 1,000 RoIs", "seconds an image or a step"),
    "images": ("images of val, 1,230 classes", "seconds"),
    "cache": ("gigabytes of features", "seconds"),
}
Point = tuple[str, str, float, float]
"""Plot, series, position on the horizontal axis, seconds."""


def main() -> None:
    """Measures, keeps the figures and draws."""
    torch.set_num_threads(1)
    points = [point for series in (by_rois, by_classes, by_images, by_cache_size) for point in series()]
    table = pd.DataFrame(points, columns=["plot", "series", "x", "seconds"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / "growth.csv", index=False, float_format="%.4g")
    for name, part in table.groupby("plot", sort=False):
        draw(name, part)
    print(table.to_string(index=False))


def by_rois() -> Iterator[Point]:
    """Suppression of one image."""
    for rois in ROIS:
        for series, value in suppression(rois, 1230):
            yield "rois", series, rois, value


def by_classes() -> Iterator[Point]:
    """Suppression of one image, and a training step of a linear head."""
    for classes in CLASSES:
        for series, value in suppression(1000, classes):
            yield "classes", series, classes, value
        yield "classes", f"step of a linear head, {STEP_ROIS} RoIs", classes, linear_step(classes)


def suppression(rois: int, classes: int) -> Iterator[tuple[str, float]]:
    """Ours, capped and not, and the standard path where it ends in bearable time, at threshold 0.0."""
    boxes, scores = proposals(rois), softmax(logits(rois, classes))
    yield "class_nms, 300 kept", best(lambda: class_nms(boxes, scores), 5)
    yield "class_nms, all kept", best(lambda: class_nms(boxes, scores, max_detections=None), 2)
    if rois * classes <= STANDARD_UP_TO:
        yield "torchvision.ops.batched_nms", seconds(lambda: standard(boxes, scores, 0.0, 300))


def linear_step(classes: int) -> float:
    """Forward, backward and update of a classifier on embeddings."""
    layer = torch.nn.Linear(1024, classes + 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    inputs, labels = torch.randn(STEP_ROIS, 1024), torch.arange(STEP_ROIS) % (classes + 1)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(layer(inputs), labels).backward()
        optimizer.step()

    return best(step, 5)


def by_images() -> Iterator[Point]:
    """Detection from a cache of logits, and evaluation of the boxes."""
    classes = lvis_classes()
    with tempfile.TemporaryDirectory() as folder:
        for images in IMAGES:
            cache = make_cache(Path(folder, "logits.zarr"), images, rois=300, level="logits")
            yield "images", "fuse.detect, 300 RoIs", images, best(lambda: detect(cache, mode="original"), 1)  # noqa: B023
            truth = annotations(classes, images)
            found = detections(truth, classes, masks=False)
            yield "images", "fuse.evaluate, boxes", images, best(lambda: evaluate(truth, found, classes), 1)  # noqa: B023


def by_cache_size() -> Iterator[Point]:
    """Writing, opening and reading pooled features."""
    measured: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for images in CACHE_IMAGES:
            path = Path(folder, "pooled.zarr")
            written = seconds(lambda: make_cache(path, images, rois=800, level="pooled"))  # noqa: B023
            cache = open_cache(path)
            gigabytes = int(cache.offsets[-1]) * 12544 * 2 / 1e9
            times = {
                "write": written,
                "open": best(lambda: open_cache(path), 3),  # noqa: B023
                "read": best(lambda: cache.read("features"), 1),  # noqa: B023
            }
            for series, value in times.items():
                measured.setdefault(series, []).append((gigabytes, value))
    for series, pairs in measured.items():
        x, y = np.array(pairs).T
        slope, start = np.polyfit(x, y, 1)
        yield from (("cache", series, *pair) for pair in pairs)
        yield from (("cache", f"{series} (line)", size, max(start, 0) + slope * size) for size in GIGABYTES)


def make_cache(path: Path, images: int, rois: int, level: str) -> RoICache:
    """A cache of one image's made-up RoIs, again and again under other ids."""
    classes = lvis_classes() if level == "logits" else lvis_classes()[:80].reset_index(drop=True)
    boxes, z = proposals(rois), logits(rois, len(classes))[:, None]
    rng = np.random.default_rng(0)
    pooled = rng.random((rois, 1, 256, 7, 7), np.float32).astype(np.float16) if level == "pooled" else None
    one = {
        "height": 800,
        "width": 1216,
        "proposals": boxes[:, None],
        "boxes": boxes,
        "logits": z,
        "objectness": np.ones(rois, np.float32),
        "features": pooled,
        "labels": np.full((rois, 1), len(classes), np.int32),
        "ious": np.zeros((rois, 1), np.float32),
        "gt_ids": np.full((rois, 1), -1, np.int64),
        "is_gt": np.zeros(rois, bool),
    }
    every = [RoIs(image_id=i + 1, **one) for i in range(images)]
    return write_cache(path, every, classes, split="val", level=level, stages=(0.5,), overwrite=True)


def best(function, rounds: int) -> float:
    """The shortest of several calls, after one that compiles."""
    function()
    return min(seconds(function) for _ in range(rounds))


def draw(name: str, table: pd.DataFrame) -> None:
    """One plot, both axes logarithmic."""
    plt.rcParams["svg.hashsalt"] = name
    figure, axes = plt.subplots(figsize=(6, 4))
    for series, part in table.groupby("series", sort=False):
        axes.loglog(part["x"], part["seconds"], "--" if series.endswith("(line)") else "o-", label=series)
    axes.set_xlabel(TITLES[name][0])
    axes.set_ylabel(TITLES[name][1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / f"growth_{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
