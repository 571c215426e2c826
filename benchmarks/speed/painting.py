"""Masks of the ten rows of a sweep, painted after detection, against one inference of the framework.

    python -m benchmarks.speed.painting                 # needs the data of `make demo RECIPE=paper`
    python -m benchmarks.speed.painting torchvision     # one of minilvis, torchvision, detectron2, mmdet

The case reads images, predicts the masks of every pair of box and class that a row keeps, encodes them and writes the
store. The baseline takes decoded images and runs the framework's own inference at the score threshold of its LVIS
configs, with 300 detections per image, masks at the image's size. Both are CPU times, with one thread of PyTorch.

The first row is Mini-LVIS's trained detector and its trained head. The others are each framework's Mask R-CNN R50-FPN
with LVIS's classes, class-specific boxes and masks and random weights, whose calibrated classifier is NorCal.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage

import calib
import extract
from benchmarks.live_subjects import BUILDERS, spread_scores
from benchmarks.paper.setups import MASK_RCNN
from benchmarks.speed.inputs import SIZE, lvis_classes
from benchmarks.speed.measure import Result, result, save, seconds, timing
from calib.scoring import Original, Scorer
from extract.cache.mask_store import BoxClassPairs, MaskStore
from extract.cache.reader import RoICache
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from extract.detectors import load_detector
from extract.detectors.base import Image
from extract.utils.distributed import Coordinator
from fuse.commands.paper_rows import paper_rows
from fuse.config import FusionConfig
from fuse.defaults import MAX_DETECTIONS
from fuse.fusion import Fusion
from fuse.inference import detect_many
from fuse.painted import distinct_pairs
from fuse.painting import MaskPainter, paint_pairs

PLAIN, MINILVIS = Path("data/plain"), Path("data/minilvis")
WEIGHTS = Path("benchmarks/minilvis/weights/plain.safetensors")
MINILVIS_IMAGES, LARGE_IMAGES = 8, 1
SCORE_THRESHOLD = 1e-4
"""Of the LVIS configs of detectron2 and mmdetection."""
TARGET = 1.3
"""Upper bound of the time of painting, relative to one inference."""


class Job(NamedTuple):
    """Images to paint, what to paint in them, and the framework's own inference on them."""

    name: str
    cache: RoICache
    painter: MaskPainter
    pairs: BoxClassPairs
    infer: Callable[[], object]


def main(names: list[str]) -> None:
    """Times all detectors, or those that are named, and saves the result of each."""
    torch.set_num_threads(1)
    for name in names or ["minilvis", *BUILDERS]:
        with minilvis_job() if name == "minilvis" else large_job(name) as job:
            save("painting", [time_painting(job, rounds=2 if name == "minilvis" else 1)])


def time_painting(job: Job, rounds: int) -> Result:
    """Times the painting of all pairs into new stores, in turn with the baseline."""
    numbers, clock = count(), time.process_time  # which other processes hardly affect
    with tempfile.TemporaryDirectory() as folder:

        def paint() -> None:
            store = MaskStore(job.cache, f"{folder}/{next(numbers)}")
            paint_pairs(store, job.pairs, job.painter, Coordinator())

        images = len(np.unique(job.pairs.image_ids))
        case = f"masks of ten rows, {job.name}, {len(job.pairs.image_ids) / images:.0f} per image, {images} images"
        times = timing([(seconds(paint, clock=clock), seconds(job.infer, clock=clock)) for _ in range(rounds)])
        return result(case, "the framework's own inference", times, "at_most", TARGET)


@contextmanager
def minilvis_job() -> Iterator[Job]:
    """Yields Mini-LVIS's trained detector and head on the first images of its val cache."""
    cache = extract.open_cache(str(PLAIN / "val.zarr"))
    detector = load_detector(extract.DetectorSpec(MASK_RCNN, WEIGHTS, device="cpu"))
    annotations = read_annotations(MINILVIS / "val.json")
    image_ids = cache.images["image_id"].to_numpy()[:MINILVIS_IMAGES]
    pairs = row_pairs(cache, calib.load_head(PLAIN / "head"))
    names = dict(zip(annotations.image_ids.tolist(), annotations.file_names, strict=True))
    size = tuple(cache.images[["height", "width"]].iloc[0])
    model: Any = detector.model  # type: ignore[attr-defined]
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = SCORE_THRESHOLD, MAX_DETECTIONS
    tensors = [detector.to_tensor(Image(0, read_image(MINILVIS / "val", names[i], size))) for i in image_ids.tolist()]

    def infer() -> None:
        with torch.inference_mode():
            for tensor in tensors:
                model([tensor])

    painter = MaskPainter(detector, cache, annotations, MINILVIS / "val")
    yield Job("Mini-LVIS", cache, painter, pairs.take(np.isin(pairs.image_ids, image_ids)), infer)


@contextmanager
def large_job(framework: str) -> Iterator[Job]:
    """Yields a framework's Mask R-CNN with random weights on large images, its cache and NorCal's pairs."""
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder))
        subject = BUILDERS[framework]("cpu")
        spread_scores(subject, images[0])
        rois = [subject.detector.forward([Image(i, pixels)], "logits").rois[0] for i, pixels in enumerate(images, 1)]
        options: dict[str, Any] = {"split": "val", "level": "logits", "detector": subject.detector.description}
        cache = extract.write_cache(f"{folder}/val.zarr", rois, lvis_classes(), **options)
        pairs = row_pairs(cache, calib.posthoc.NorCal().fit(cache))
        painter = MaskPainter(subject.detector, cache, read_annotations(f"{folder}/val.json"), Path(folder))
        name = f"{framework} R50-FPN {SIZE[0]} × {SIZE[1]}"
        yield Job(name, cache, painter, pairs, lambda: [subject.infer(pixels, SCORE_THRESHOLD) for pixels in images])


def row_pairs(cache: RoICache, calibrated: Scorer) -> BoxClassPairs:
    """Returns the pairs that a sweep keeps."""
    original = Original.from_description(cache.detector)
    rows = paper_rows(FusionConfig(), calibrated, original)
    fusions = {name: Fusion.for_cache(cache, row, calibrated, original) for name, row in rows.items()}
    return distinct_pairs(detect_many(cache, fusions, masks=False).values())


def write_images(folder: Path) -> list[np.ndarray]:
    """Writes images of random colours and their annotation file; returns their pixels."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    images = []
    for i in range(1, LARGE_IMAGES + 1):
        colours = PILImage.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        images.append(colours.resize((width, height), PILImage.Resampling.BICUBIC))
        images[-1].save(folder / f"{i}.png")
    records = [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(1, LARGE_IMAGES + 1)]
    categories = lvis_classes().rename(columns={"category_id": "id"}).to_dict("records")
    content = {"images": records, "annotations": [], "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))
    return [np.asarray(image) for image in images]


if __name__ == "__main__":
    main(sys.argv[1:])
