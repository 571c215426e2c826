"""Draws the two pictures of the README from the files of a finished `make demo RECIPE=paper`.

    python -m benchmarks.pictures

`docs/before_after.png` shows one val image of Mini-LVIS with the detections of the original detector and of the
calibrated one; `docs/ap_by_count.svg` shows AP of each class by its number of training instances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from hotcoco import mask as rle

from calib.head_io import load_head
from extract import RoICache, open_cache
from extract.data.annotations import Annotations, read_annotations
from extract.data.images import read_image
from extract.detectors.base import ImageDetections
from extract.matching import box_iou
from fuse.config import FusionConfig
from fuse.defaults import TAIL
from fuse.detections import Detections
from fuse.drawing import draw_detections, side_by_side
from fuse.fusion import Fusion
from fuse.inference import detect_many
from fuse.scores import tail_classes

ROOT = Path(__file__).parents[1]
MINILVIS, RUN, DOCS = ROOT / "data" / "minilvis", ROOT / "data" / "plain", ROOT / "docs"
IOU = 0.5
"""Least IoU of a detection with the object that it finds."""
ROWS = {"original": "original@0.0", "calibrated": "rhead-cat"}
"""Legend → row of the sweep."""
COLOURS = {"original": "#d55e00", "calibrated": "#0072b2"}
"""Distinguishable with colour blindness."""
STYLES = {"original": "o--", "calibrated": "s-"}
BINS_PER_DECADE = 3


class ImageResult(NamedTuple):
    """One image's best detections, as many as it has objects, and which objects they find with the right class.

    Attributes:
        detections: best first.
        rles: their masks.
        correct: (G,) bool.
    """

    detections: ImageDetections
    rles: list[dict[str, Any]]
    correct: np.ndarray


def main() -> None:
    """Draws both pictures."""
    draw_before_after(DOCS / "before_after.png")
    draw_ap_by_count(DOCS / "ap_by_count.svg")


def draw_before_after(path: Path) -> None:
    """Draws the image in which calibration gains most tail objects, with as many detections as it has objects."""
    val, annotations = open_cache(str(RUN / "val.zarr")), read_annotations(MINILVIS / "val.json")
    fusions = {
        "original": Fusion.for_cache(val, FusionConfig(mode="original")),
        "calibrated": Fusion.for_cache(val, FusionConfig(mode="cat"), load_head(RUN / "head")),
    }
    detected = detect_many(val, fusions)
    results = [
        [image_result(detections, val, annotations, position) for detections in detected.values()]
        for position in range(len(annotations.image_ids))
    ]
    position = most_gained(results, val, annotations)
    size = int(annotations.heights[position]), int(annotations.widths[position])
    pixels = read_image(MINILVIS / "val", annotations.file_names[position], size)
    sides = []
    for detections, rles, correct in results[position]:
        masks = rle.decode(rles).transpose(2, 0, 1).astype(bool)
        sides.append(draw_detections(pixels, detections, masks, val.classes["name"].tolist(), len(correct)))
    side_by_side(sides).save(path, optimize=True)


def image_result(detections: Detections, val: RoICache, annotations: Annotations, position: int) -> ImageResult:
    """Selects an image's best detections and compares them with its objects."""
    objects = annotations.image_slice(position)
    labels = annotations.labels[objects]
    own = np.flatnonzero(detections.image_ids == annotations.image_ids[position])
    best = own[np.argsort(-detections.scores[own], kind="stable")][: len(labels)]
    found = np.searchsorted(val.classes["category_id"], detections.category_ids[best])
    overlap = box_iou(annotations.boxes[objects], detections.boxes[best]) >= IOU
    correct = (overlap & (labels[:, None] == found)).any(axis=1)
    assert detections.rles is not None
    rles = [detections.rles[i] for i in best]
    return ImageResult(ImageDetections(detections.boxes[best], found, detections.scores[best]), rles, correct)


def most_gained(results: list[list[ImageResult]], val: RoICache, annotations: Annotations) -> int:
    """Returns the position of the image with the most tail objects gained; of several, with the most objects found."""
    tail = tail_classes(val.classes["instance_count"].to_numpy())
    gains = []
    for position, (original, calibrated) in enumerate(results):
        is_tail = tail[annotations.labels[annotations.image_slice(position)]]
        gained = int(calibrated.correct[is_tail].sum()) - int(original.correct[is_tail].sum())
        gains.append((gained, int(calibrated.correct.sum()), -position))
    return -max(gains)[-1]


def draw_ap_by_count(path: Path) -> None:
    """Plots mask AP of each class, and the mean of bins of training instances, before and after calibration."""
    ap = pd.read_csv(RUN / "sweep" / "per_class.csv", index_col=["iou_type", "row"]).loc["segm"].dropna(subset="AP")
    edges = np.logspace(0, 4, 4 * BINS_PER_DECADE + 1)
    plt.rcParams["svg.hashsalt"] = path.stem
    figure, axes = plt.subplots(figsize=(9, 4))
    for name, row in ROWS.items():
        counts, values = ap.loc[row, "instance_count"], ap.loc[row, "AP"]
        axes.scatter(counts, values, s=12, color=COLOURS[name], alpha=0.45, linewidths=0)
        bins = pd.DataFrame({"count": np.log(counts), "ap": values}).groupby(np.digitize(counts, edges)).mean()
        axes.plot(np.exp(bins["count"]), bins["ap"], STYLES[name], color=COLOURS[name], linewidth=2, label=name)
    axes.axvline(TAIL, color="grey", linestyle=":", linewidth=1)
    axes.text(0.93 * TAIL, 89, "tail classes", color="dimgrey", ha="right", va="top")
    axes.set(xscale="log", xlabel="training instances of the class", ylabel="mask AP", ylim=(-2, 90))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
