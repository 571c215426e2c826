"""The cost of a whole calibration, extrapolated from measured slopes: hours and gigabytes.

    python -m benchmarks.speed.cost     # after the other benchmarks, whose results it takes

An extraction's time is that of one image times the images; a training's that of one step times the steps. Both are
from `benchmarks/results/speed`. Fusion is timed here, on a val cache of a few made-up images, once per recipe and
number of classes. All that is assumed besides is in this module's constants, and in the text around the table.

`paper` is 3fc_ft on pooled features in fp32, every foreground RoI of the train cache, 12,000 steps. `default` is head
type auto on hidden features, `ROIS_PER_CLASS` foreground RoIs per class and image, 12,000 steps, extraction and
training in bf16. Its choice between two heads costs less than a hundred of these steps and is left out.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import numpy as np
import pandas as pd

from benchmarks.provenance import provenance
from benchmarks.speed import inputs
from benchmarks.speed.detection import detect_on
from benchmarks.speed.measure import RESULTS, seconds
from benchmarks.speed.traincache import BACKGROUND, DIRECTIONS, ROIS_PER_INSTANCE, SHAPES
from calib.choice import ROIS_PER_CLASS
from calib.head_types import build_head
from extract import write_cache
from extract.cache.derived import UpperLayers
from extract.cache.format import Projection, row_bytes, row_shapes
from extract.rois import RoIs

Recipe = Literal["paper", "default"]
LEVELS = {"paper": "pooled", "default": "hidden"}
STEPS = 12_000
PROPOSALS, MASK = 1000, 28
FUSED_IMAGES = 4
GPU_SECONDS_PER_IMAGE = 0.043
"""Inference of detectron2's Mask R-CNN R50-FPN on one V100, from its model zoo."""
GPU_FLOPS = 8e12
"""Half of a V100's fp32 peak."""


@dataclass(frozen=True)
class Dataset:
    """A dataset's size.

    Attributes:
        train_images: visited by extraction, so that every class has 100 images or all it has.
        classes_per_image, instances_per_image: annotated, on average.
    """

    name: str
    num_classes: int
    train_images: int
    val_images: int
    classes_per_image: float
    instances_per_image: float


DATASETS = (
    Dataset("LVIS v0.5", 1230, 29_992, 5_000, 3.6, 12.2),
    Dataset("LVIS v1", 1203, 29_992, 19_809, 3.6, 12.7),
    Dataset("V3Det", 13_204, 183_354, 29_821, 4, 7.2),
)
MACHINES = {"2 cores": 2, "16 cores": 16, "one GPU": 1, "8 GPUs": 8}
"""Number of cores or GPUs."""
CPUS_PER_GPU = 16


class Cost(NamedTuple):
    """Hours of each stage and gigabytes of both caches."""

    extract_train: float
    extract_val: float
    train: float
    fuse: float
    train_gb: float
    val_gb: float


def main() -> None:
    """Writes `cost.csv`."""
    rows = []
    for dataset in DATASETS:
        for recipe in ("paper", "default"):
            fusion = time_fusion(recipe, dataset.num_classes)
            for machine in MACHINES:
                cost = calibration_cost(dataset, recipe, machine, fusion)
                rows.append({"dataset": dataset.name, "recipe": recipe, "hardware": machine, **cost._asdict()})
    table = pd.DataFrame(rows).round(4).assign(**provenance())
    print(table.to_string(index=False))
    table.to_csv(RESULTS / "cost.csv", index=False)


def calibration_cost(dataset: Dataset, recipe: Recipe, machine: str, fusion: float) -> Cost:
    """Returns the cost of a calibration; `fusion` is the seconds that an image of val takes on two cores."""
    gpu, count = "GPU" in machine, MACHINES[machine]
    share = 1 / count if gpu else 2 / count
    cpu_share = 2 / (CPUS_PER_GPU * count) if gpu else share
    image = GPU_SECONDS_PER_IMAGE if gpu else extraction_seconds(recipe)
    step = step_flops(recipe, dataset.num_classes) / GPU_FLOPS if gpu else step_seconds(recipe, dataset.num_classes)
    evaluation = read("evaluation", "evaluate, 1,000 images × 300 detections, masks") / 1000
    hours = np.array(
        [
            dataset.train_images * image * share,
            dataset.val_images * image * share,
            STEPS * step * share,
            dataset.val_images * (fusion + evaluation) * cpu_share,
        ]
    )
    train_rois = train_rois_per_image(dataset, recipe)
    train_gb = dataset.train_images * train_rois * roi_bytes(dataset, recipe, masks=False) / 1e9
    val_gb = dataset.val_images * PROPOSALS * roi_bytes(dataset, recipe, masks=True) / 1e9
    return Cost(*(hours / 3600).tolist(), train_gb, val_gb)


def extraction_seconds(recipe: Recipe) -> float:
    """Returns the measured seconds per image of extraction, R50-FPN at 800 × 1,200 pixels, on two cores."""
    exact = read("extraction", "extraction, R50-FPN 800 × 1200 train, 3 images") / 3
    if recipe == "paper":
        return exact
    table = pd.read_csv(RESULTS / "extraction.csv")
    reduced = table[table["case"].str.startswith("extraction in bf16, R50-FPN")]
    return exact * float(reduced["ratio"].max())


def step_seconds(recipe: Recipe, num_classes: int) -> float:
    """Returns the measured seconds of a training step on two cores, and what classes beyond LVIS's add to it."""
    if recipe == "paper":
        step = read("training", "step of 3fc_ft")
    else:
        step = max(read("training", f"step of {head} on hidden features, bf16") for head in ("3fc_ft", "3fc_lowrank"))
    extra = max(num_classes - len(inputs.lvis_classes()), 0)
    return step + extra * seconds_per_class() * rois_per_step(recipe) / 512


def seconds_per_class() -> float:
    """Returns the slope of a classifier's step of 512 RoIs over its number of classes."""
    growth = pd.read_csv(RESULTS / "growth.csv")
    steps = growth[growth["series"] == "step of a linear head, 512 RoIs"].astype({"x": float})
    return float(np.polyfit(steps["x"], steps["time"], 1)[0])


def rois_per_step(recipe: Recipe) -> float:
    """Returns the RoIs of a step: foreground of 16 classes and as much background."""
    return 1650 if recipe == "paper" else 2 * 16 * ROIS_PER_CLASS


def step_flops(recipe: Recipe, num_classes: int) -> float:
    """Returns the floating point operations of a step's matrix products, forward and backward."""
    widths = [256 * 49, 1024, 1024, num_classes + 1][0 if recipe == "paper" else 1 :]
    return 6 * rois_per_step(recipe) * sum(a * b for a, b in pairwise(widths))


def train_rois_per_image(dataset: Dataset, recipe: Recipe) -> float:
    """Returns the RoIs that a train cache keeps of an image: foreground and background."""
    if recipe == "paper":
        return dataset.instances_per_image * ROIS_PER_INSTANCE + BACKGROUND
    foreground = max(dataset.classes_per_image * ROIS_PER_CLASS, dataset.instances_per_image)
    return 2 * foreground


def roi_bytes(dataset: Dataset, recipe: Recipe, masks: bool) -> int:
    """Returns the bytes of a RoI in a cache, before compression."""
    rois = make_val_image(0, recipe, dataset.num_classes, masks, rois=1)
    return row_bytes(row_shapes(rois, logits=recipe == "paper"))


def time_fusion(recipe: Recipe, num_classes: int) -> float:
    """Returns the seconds per image from a val cache to detections, original and calibrated, with all CPUs."""
    classes = pd.DataFrame({"category_id": range(num_classes), "instance_count": 5, "image_count": 5})
    classes = classes.assign(name=[f"class {k}" for k in range(num_classes)], frequency="r")
    rng, widths = np.random.default_rng(0), [256 * 49, 1024, 1024, num_classes + 1]
    layers = [(rng.standard_normal((b, a), np.float32) / a**0.5, np.zeros(b, np.float32)) for a, b in pairwise(widths)]
    directions = Projection(np.eye(DIRECTIONS, widths[0], dtype=np.float32), np.zeros(widths[0], np.float32))
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(
            f"{folder}/val.zarr",
            [make_val_image(image, recipe, num_classes, masks=True) for image in range(FUSED_IMAGES)],
            classes,
            split="val",
            level=LEVELS[recipe],
            fc_layers=[layers],
            projections=[directions] if recipe == "default" else (),
        )
        detect = partial(detect_on, os.sched_getaffinity(0), cache, build_head(cache, "3fc_ft", 0, 0, {}))
        detect()
        # The logits of noise do not follow from features of noise, so that this cache stores them.
        derive = partial(UpperLayers([layers[1:]]).logits, cache.image_at(0).features) if recipe == "default" else int
        return seconds(detect) / FUSED_IMAGES + seconds(derive)


def make_val_image(image_id: int, recipe: Recipe, num_classes: int, masks: bool, rois: int = PROPOSALS) -> RoIs:
    """Makes an image's RoIs, of noise."""
    rng = np.random.default_rng(image_id)
    shape = (rois, 1, *SHAPES[LEVELS[recipe]])
    return inputs.make_rois(
        image_id,
        inputs.proposals(rois, image_id),
        inputs.logits(rois, num_classes, image_id),
        features=rng.standard_normal(shape, np.float32).astype(np.float16),
        masks=rng.integers(0, 255, (rois, MASK, MASK)).astype(np.uint8) if masks else None,
    )


def read(name: str, case: str) -> float:
    """Returns the seconds of a case in `benchmarks/results/speed/<name>.csv`."""
    table = pd.read_csv(RESULTS / f"{name}.csv")
    return cast(float, table[table["case"] == case]["time"].iloc[0])


if __name__ == "__main__":
    main()
