"""What a RoI cache costs beyond the detector: extraction against the bare forward pass over the same images.

    python -m benchmarks.speed.extraction             # needs data/minilvis, from `make demo`

Extraction is `extract.run` as the command runs it, from image files to the finished cache, but with the detector loaded
beforehand. The bare forward pass takes decoded images and makes the same RoIs, and masks where the cache keeps them.
Reading, matching, conversion and writing run beside the forward pass in threads; what they need of the processors' time
shows where that leaves no core idle, so there are rows for one thread of PyTorch's and for as many as there are cores.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image as PILImage

import extract
from benchmarks.live import Config as LiveConfig
from benchmarks.live import spread, torchvision_detector
from benchmarks.speed.inputs import lvis_classes
from benchmarks.speed.measure import compare, keep, row
from extract.cache.format import COLUMNS
from extract.data.annotations import read_annotations
from extract.detectors import load_detector
from extract.detectors.base import Detector, ForwardOutput, Image
from extract.extractor import Extraction

MINILVIS = Path("data/minilvis")
WEIGHTS = Path("benchmarks/minilvis/weights/plain.safetensors")
BUILDER = "torchvision:benchmarks.minilvis.detector:mask_rcnn"
SMALL = {"train": 96, "val": 48}
"""Images of Mini-LVIS by split."""
LARGE, SIZE = 3, (800, 1200)
"""Images of the large detector, and their height and width."""


def main() -> None:
    """Prints the table and keeps it."""
    rows, cores = [], os.cpu_count()
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        for split in SMALL:
            rows.append(small_row(split, threads))
    keep("extraction", [*rows, large_row(cores), masks_row(cores)])


def small_row(split: str, threads: int) -> dict[str, str]:
    """Mini-LVIS's detector and images."""
    with small(split) as (config, detector):
        return measured(f"extraction, Mini-LVIS {split}, {SMALL[split]} images", config, detector, threads, rounds=3)


def large_row(threads: int) -> dict[str, str]:
    """A detector of LVIS's size; its images are one batch, so nothing overlaps here."""
    with large() as (config, detector):
        return measured(f"extraction, R50-FPN 800 × 1200 train, {LARGE} images", config, detector, threads, rounds=1)


def masks_row(threads: int) -> dict[str, str]:
    """Masks in parts that the processor's cache holds."""
    with small("val") as (config, detector):
        job = Extraction(config, read_annotations(config.annotations), detector)
        forward = bare(job, [0, 1, 2, 3], [job._load(i) for i in range(4)])

        def at_once() -> list[np.ndarray]:
            with patch("extract.detectors.common.MASK_BATCH_CPU", 1024):
                return forward.masks()

        np.testing.assert_array_equal(forward.masks(), at_once())
        pair = compare(forward.masks, at_once)
    return row("Mini-LVIS val, masks of 4 × 300 boxes", f"all of an image at once, {_threads(threads)}", pair)


def measured(what: str, config: extract.Config, detector: Detector, threads: int, rounds: int) -> dict[str, str]:
    """The row of one extraction."""
    job = Extraction(config, read_annotations(config.annotations), detector)
    batches = [batch for block in range(job.blocks) for batch in job._batches(block)]
    images = {i: job._load(i) for batch in batches for i in batch}
    with patch("extract.extraction.load_detector", lambda _: detector):
        check(extract.run(config), job)
        numbers = count()
        whole = lambda: extract.run(replace(config, out=f"{config.out}{next(numbers)}"))  # noqa: E731
        alone = lambda: [bare(job, b, [images[i] for i in b]) for b in batches]  # noqa: E731
        pair = compare(whole, alone, rounds)
    return row(what, f"bare forward, {_threads(threads)}", pair, at_most=1.1)


def _threads(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def bare(job: Extraction, batch: list[int], images: list[Image]) -> ForwardOutput:
    """The detector's part of one batch."""
    choose = lambda i, proposals: job._choose(batch[i], job._truth(batch[i]), proposals)  # noqa: E731
    forward = job.detector.forward(images, job.config.level, choose)
    if job.masks:
        forward.masks()
    return forward


def check(cache: extract.RoICache, job: Extraction) -> None:
    """The cache holds what one image after the other gives."""
    for position, rois in enumerate(job.block(0)):
        stored = cache[position]
        for field in COLUMNS:
            ours, theirs = getattr(stored, field), getattr(rois, field)
            if theirs is not None:
                theirs = np.minimum(theirs, 254) if field == "masks" else theirs.astype(ours.dtype)
                np.testing.assert_array_equal(ours, theirs, err_msg=field)


@contextmanager
def small(split: str) -> Iterator[tuple[extract.Config, Detector]]:
    """Mini-LVIS's detector, trained, and the first images of a split."""
    content = json.loads((MINILVIS / f"{split}.json").read_text())
    content["images"] = content["images"][: SMALL[split]]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), content, split, MINILVIS / split, proposals=1000 if split == "train" else 300)
        yield config, load_detector(config)


@contextmanager
def large() -> Iterator[tuple[extract.Config, Detector]]:
    """A Mask R-CNN of LVIS's classes with peaked scores, and made-up photographs with some objects each."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    with tempfile.TemporaryDirectory() as folder:
        images, annotations = [], []
        for i in range(1, LARGE + 1):
            pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            PILImage.fromarray(pixels).resize((width, height), PILImage.Resampling.BICUBIC).save(f"{folder}/{i}.jpg")
            images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
            for x, y, w, h in rng.uniform(20, 380, (12, 4)).tolist():
                box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h]]}
                one = {"id": len(annotations) + 1, "image_id": i, "category_id": len(annotations) + 1}
                annotations.append(one | box)
        table = lvis_classes().rename(columns={"category_id": "id"})
        content = {"images": images, "annotations": annotations, "categories": table.to_dict("records")}
        detector, classifier, background, _ = torchvision_detector(LiveConfig())
        spread(detector, classifier, background, np.asarray(PILImage.open(f"{folder}/1.jpg")))
        yield _config(Path(folder), content, "train", Path(folder)), detector


def _config(folder: Path, content: dict, split: str, images: Path, **options) -> extract.Config:
    annotations = folder / f"{split}.json"
    annotations.write_text(json.dumps(content))
    options |= {"annotations": annotations, "train_annotations": annotations, "images": images}
    return extract.Config(
        detector=BUILDER, weights=WEIGHTS, split=split, out=f"{folder}/cache", device="cpu", **options
    )


if __name__ == "__main__":
    main()
