"""Draws the two pictures of the README from the files of a finished `make demo RECIPE=paper`.

    python -m benchmarks.pictures

`docs/before_after.png` shows one val image of Mini-LVIS with the detections of the original detector and of the
calibrated one; `docs/ap_by_count.svg` shows AP of each class by its number of training instances.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from calib.head_io import load_head
from extract import open_cache
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from fuse import plots
from fuse.config import FusionConfig
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.outcomes import object_outcomes
from fuse.fusion import Fusion
from fuse.gallery import draw_example, gained_images
from fuse.inference import detect_many
from fuse.scores import tail_classes

ROOT = Path(__file__).parents[1]
MINILVIS, RUN, DOCS = ROOT / "data" / "minilvis", ROOT / "data" / "plain", ROOT / "docs"
ROWS = {"original": "original@0.0", "calibrated": "rhead-cat"}
"""Title → row of the sweep."""


def main() -> None:
    """Draws both pictures."""
    draw_before_after(DOCS / "before_after.png")
    draw_ap_by_count(DOCS / "ap_by_count.svg")


def draw_before_after(path: Path) -> None:
    """Draws the image in which calibration gains most tail objects, with the best detection on each object."""
    val, annotations = open_cache(str(RUN / "val.zarr")), read_annotations(MINILVIS / "val.json")
    fusions = {
        "original": Fusion.for_cache(val, FusionConfig(mode="original")),
        "calibrated": Fusion.for_cache(val, FusionConfig(mode="cat"), load_head(RUN / "head")),
    }
    dataset = load_annotations(MINILVIS / "val.json")
    outcomes = [object_outcomes(dataset, row, val.classes) for row in detect_many(val, fusions).values()]
    tail = tail_classes(val.classes["instance_count"].to_numpy())
    (image_id,) = gained_images(*outcomes, tail, 1)
    position = annotations.image_ids.tolist().index(image_id)
    size = int(annotations.heights[position]), int(annotations.widths[position])
    pixels = read_image(MINILVIS / "val", annotations.file_names[position], size)
    drawn = draw_example(pixels, image_id, outcomes, val.classes["name"].tolist(), tuple(ROWS))
    drawn.save(path, optimize=True)


def draw_ap_by_count(path: Path) -> None:
    """Plots mask AP of each class, and the mean of bins of training instances, before and after calibration."""
    per_class = pd.read_csv(RUN / "sweep" / "per_class.csv", index_col=["iou_type", "row"]).loc["segm"]
    plt.rcParams["svg.hashsalt"] = path.stem
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    plots.ap_by_count({name: per_class.loc[row] for name, row in ROWS.items()}, ax=axes).set_ylabel("mask AP")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
