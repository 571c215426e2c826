"""Extraction of a RoI cache against the detector's forward pass alone, over the same images.

    python -m benchmarks.speed.extraction             # needs data/minilvis, from `make demo`

The case is `extract.run` as the command runs it, from image files to the finished cache, except that the detector is
loaded beforehand, and that the check of the first image has a row of its own. The baseline takes decoded images and
computes the same RoIs, and masks where the cache keeps them. Threads read, match, convert and write during the forward
pass. Their CPU time shows where PyTorch's own threads leave no core idle, so there are rows for one PyTorch thread and
for one per core.
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
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image as PILImage

import extract
from benchmarks.live_subjects import spread_scores, torchvision_subject
from benchmarks.paper.setups import MASK_RCNN
from benchmarks.speed.inputs import lvis_classes
from benchmarks.speed.measure import Result, compare, result, save
from extract.cache.format import COLUMNS
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from extract.detectors import load_detector
from extract.detectors.agreement import check_inference
from extract.detectors.base import Detector, ForwardOutput, Image
from extract.extractor import Extractor
from extract.matching import GroundTruth, select_training_samples

Split = Literal["train", "val"]
MINILVIS = Path("data/minilvis")
WEIGHTS = Path("benchmarks/minilvis/weights/plain.safetensors")
MINILVIS_IMAGES: dict[Split, int] = {"train": 96, "val": 48}
LARGE_IMAGES, LARGE_SIZE = 3, (800, 1200)
"""Images of the large detector, and their height and width."""
MASK_IMAGES = 4
TARGET = 1.1
"""Upper bound of the time of an extraction, relative to that of the forward pass."""


class Job(NamedTuple):
    """An extraction to run, its detector, and the folder of the images."""

    config: extract.Config
    detector: Detector
    images: Path


def main() -> None:
    """Times all extractions and saves the results."""
    results, cores = [], os.cpu_count() or 1
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        for split, images in MINILVIS_IMAGES.items():
            with minilvis_job(split) as job:
                case = f"extraction, Mini-LVIS {split}, {images} images"
                results.append(time_extraction(case, job, threads, rounds=3))
    with large_job() as job:  # its images are one batch, so nothing overlaps
        case = f"extraction, R50-FPN 800 × 1200 train, {LARGE_IMAGES} images"
        results += [time_extraction(case, job, cores, rounds=1), time_check(job, cores)]
    save("extraction", [*results, time_masks(cores)])


def time_extraction(case: str, job: Job, threads: int, rounds: int) -> Result:
    """Checks the cache, then times extractions into new folders."""
    config, forward = job.config, ForwardPass(job)
    with loaded(job.detector):
        cache = extract.run(config)
        assert cache is not None  # None only after an estimate
        check_cache(cache, job)
        numbers = count()
        timing = compare(
            lambda: extract.run(replace(config, out=f"{config.out}{next(numbers)}")),
            lambda: [forward(batch) for batch in forward.batches()],
            rounds,
        )
    return result(case, f"forward pass alone, {_threads(threads)}", timing, "at_most", TARGET)


@contextmanager
def loaded(detector: Detector) -> Iterator[None]:
    """Extractions within the block take this detector and leave out the check of the first image.

    It is two passes over one image, once in an extraction, which would be most of the time of a few images.
    """
    with (
        patch("extract.preparation.load_detector", lambda _: detector),
        patch.object(Extractor, "check_inference", lambda *_: None),
    ):
        yield


def time_check(job: Job, threads: int) -> Result:
    """Times the comparison of a detector with its framework's own inference, with which every extraction begins."""
    forward = ForwardPass(job)
    timing = compare(forward.check, lambda: forward(range(1)), rounds=3)
    case = "check of the first image, once in an extraction, R50-FPN 800 × 1200"
    return result(case, f"forward pass of an image, {_threads(threads)}", timing)


def time_masks(threads: int) -> Result:
    """Times masks in parts that fit into the CPU's cache, against all masks of an image at once."""
    with minilvis_job("val") as job:
        output = ForwardPass(job)(range(MASK_IMAGES))

        def all_at_once() -> list[np.ndarray]:
            with patch("extract.detectors.common.mask_batches", lambda boxes: (boxes,)):
                return output.masks()

        np.testing.assert_array_equal(output.masks(), all_at_once())
        timing = compare(output.masks, all_at_once)
    baseline = f"all masks of an image at once, {_threads(threads)}"
    return result(f"Mini-LVIS val, masks of {MASK_IMAGES} × 300 boxes", baseline, timing)


class ForwardPass:
    """The detector's part of an extraction, over images that are decoded already."""

    def __init__(self, job: Job) -> None:
        self._config, self._detector, folder = job
        a = read_annotations(self._config.annotations)
        sizes = zip(a.heights.tolist(), a.widths.tolist(), strict=True)
        pixels = [read_image(folder, name, size) for name, size in zip(a.file_names, sizes, strict=True)]
        self._images = [Image(int(i), image) for i, image in zip(a.image_ids, pixels, strict=True)]
        slices = [a.image_slice(i) for i in range(len(a.image_ids))]
        self._gt = [
            GroundTruth(a.boxes[s], a.labels[s], a.ids[s], a.crowd[s], bool(exhaustive))
            for s, exhaustive in zip(slices, a.exhaustive, strict=True)
        ]

    def batches(self) -> Iterator[range]:
        """Yields the positions of the images of each batch."""
        images = range(len(self._images))
        return (images[i : i + self._config.batch_size] for i in images[:: self._config.batch_size])

    def __call__(self, batch: range) -> ForwardOutput:
        """Runs the forward pass over one batch, with masks if the cache keeps them."""
        images = [self._images[i] for i in batch]
        output = self._detector.forward(images, self._config.level, lambda i, p: self._choose(batch[i], p))
        if self._config.split == "val":
            output.masks()
        return output

    def check(self) -> None:
        """Compares the first image's detections with those of the framework's own inference."""
        check_inference(self._detector, self._images[0])

    def _choose(self, position: int, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        proposals = proposals[: self._config.proposals]
        if self._config.split == "val":
            return np.arange(len(proposals)), np.empty((0, 4), np.float32)
        gt, rng = self._gt[position], np.random.default_rng(position)
        keep = select_training_samples(proposals, gt, self._detector.stages[0], self._config.background, rng)
        return keep, gt.boxes[~gt.crowd]


def check_cache(cache: extract.RoICache, job: Job) -> None:
    """Asserts that the cache holds what the images of its first block give one after the other."""
    extractor = Extractor(job.config, read_annotations(job.config.annotations), job.detector)
    for position, rois in enumerate(extractor.extract_block(0)):
        stored = cache[position]
        for field in COLUMNS:
            ours, theirs = getattr(stored, field), getattr(rois, field)
            if theirs is not None:
                theirs = np.minimum(theirs, 254) if field == "masks" else theirs.astype(ours.dtype)
                np.testing.assert_array_equal(ours, theirs, err_msg=field)


@contextmanager
def minilvis_job(split: Split) -> Iterator[Job]:
    """Yields Mini-LVIS's trained detector and the first images of a split."""
    content = json.loads((MINILVIS / f"{split}.json").read_text())
    content["images"] = content["images"][: MINILVIS_IMAGES[split]]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    with tempfile.TemporaryDirectory() as folder:
        proposals = 1000 if split == "train" else 300
        config = make_config(Path(folder), content, split, MINILVIS / split, proposals)
        yield Job(config, load_detector(config), MINILVIS / split)


@contextmanager
def large_job() -> Iterator[Job]:
    """Yields a Mask R-CNN of LVIS's classes with peaked scores, and random images with some objects each."""
    with tempfile.TemporaryDirectory() as folder:
        content = make_images(Path(folder), LARGE_IMAGES, LARGE_SIZE)
        subject = torchvision_subject("cpu")
        spread_scores(subject, np.asarray(PILImage.open(f"{folder}/1.jpg")))
        yield Job(make_config(Path(folder), content, "train", Path(folder), 1000), subject.detector, Path(folder))


def make_images(folder: Path, number: int, size: tuple[int, int]) -> dict[str, Any]:
    """Writes images of random colours, of (height, width); returns LVIS annotations, each object of another class."""
    rng = np.random.default_rng(0)
    height, width = size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(1, number + 1):
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        PILImage.fromarray(pixels).resize((width, height), PILImage.Resampling.BICUBIC).save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for x, y, w, h in rng.uniform(20, 380, (12, 4)).tolist():
            number = len(annotations) + 1
            box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h]]}
            annotations.append({"id": number, "image_id": i, "category_id": number, **box})
    categories = lvis_classes().rename(columns={"category_id": "id"}).to_dict("records")
    return {"images": images, "annotations": annotations, "categories": categories}


def make_config(folder: Path, content: dict[str, Any], split: Split, images: Path, proposals: int) -> extract.Config:
    """Writes the annotations and returns the config that extracts their images."""
    annotations = folder / f"{split}.json"
    annotations.write_text(json.dumps(content))
    return extract.Config(
        detector=MASK_RCNN,
        weights=WEIGHTS,
        device="cpu",
        annotations=annotations,
        train_annotations=annotations,
        images=images,
        split=split,
        proposals=proposals,
        out=f"{folder}/cache",
    )


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


if __name__ == "__main__":
    main()
