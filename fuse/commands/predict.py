"""`python -m fuse predict`: detections in image files, and drawings of them before and after calibration."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from extract.cache.opening import open_cache
from extract.data.annotations import Annotations, read_annotations
from extract.data.images import SizedReader
from extract.detectors import load_detector
from extract.detectors.base import Detector, Image, ImageDetections, reader_of
from extract.detectors.class_map import map_detector
from extract.utils.files import remove_partials
from extract.utils.folders import put_in_place, remove_folder
from extract.utils.locks import one_writer
from extract.utils.prefetch import prefetch
from extract.utils.progress import progress_bar
from fuse.commands.datasets import find_dataset
from fuse.commands.image_files import ImageFile, find_images, match_annotations
from fuse.commands.inputs import LiveClassifier, load_live_classifier, warn_of_tail
from fuse.commands.live_config import PredictConfig
from fuse.commands.manifest import files_fingerprint, options_as_text
from fuse.commands.next_steps import after_prediction
from fuse.commands.predict_folder import drawing_file, refuse_finished, save_drawing, writing_folder
from fuse.commands.predictions import LINES_FILE, PREDICTIONS_FILE, PredictionLines
from fuse.drawing import draw_pair
from fuse.learned_io import files_of
from fuse.live import CalibratedDetector
from fuse.ops.masks import encode_bitmaps

_LOG = logging.getLogger(__name__)
READERS = 2
"""Threads that read the next images."""
RUNTIME_OPTIONS = ("images", "device")
"""Options with which an interrupted run may resume though they have changed."""

T = TypeVar("T")
Record = dict[str, object]
Process = Callable[[ImageFile, Image], list[Record]]
"""(file, its pixels) → results of the image, best first."""


def predict(config: PredictConfig) -> None:
    """Writes predictions.json, and with `save_images` a drawing of every image.

    Images are detected one at a time, so that a resumed run gives the results of an uninterrupted one.
    """
    config = find_dataset(config)
    images = find_images(config.images, config.out)
    annotations = read_annotations(config.annotations, strict=config.strict) if config.annotations else None
    if annotations is not None:
        images = match_annotations(images, annotations)
    _check_outputs(config, images)
    detector = load_detector(config)
    classifier = load_live_classifier(config, detector)
    warn_of_tail(config, classifier.scorer.instance_counts)
    if annotations is not None:
        _check_names(classifier, annotations)
    with one_writer(config.out):
        _predict(config, images, detector, classifier, annotations)


def _predict(
    config: PredictConfig,
    images: Sequence[ImageFile],
    detector: Detector,
    classifier: LiveClassifier,
    annotations: Annotations | None,
) -> None:
    """Predicts as `predict` does, the lock of the folder being held. Older results stay until new ones are whole."""
    folder = writing_folder(config.out, config.overwrite)
    for parent in {folder, *(drawing_file(folder, image).parent for image in images)}:
        remove_partials(parent)
    lines = _open_lines(folder, config, _options(config, detector, annotations))
    read = SizedReader(reader_of(detector))
    text_ids = {} if annotations is None else annotations.text_ids
    try:
        _predict_pending(images, lines, _process(replace(config, out=folder), detector, classifier, text_ids), read)
    except KeyboardInterrupt:
        _LOG.info("%s: stopped after %d images; the same command resumes", config.out, len(lines))
        raise
    read.log_turned()
    count = lines.finish([image.key for image in images], folder / PREDICTIONS_FILE)
    if folder != config.out:
        put_in_place(folder, config.out.resolve())
    print(f"{config.out / PREDICTIONS_FILE}: {count:,} detections in {len(images):,} images")
    if config.save_images:
        _LOG.info("%s has the drawings, a PNG per image", config.out)
    _LOG.info("next: %s", after_prediction(config))


def _open_lines(folder: Path, config: PredictConfig, options: Mapping[str, str]) -> PredictionLines:
    """Returns the lines of an interrupted run, or of a new one. Beside `config.out`, other options start anew."""
    try:
        return PredictionLines(folder, options, config.overwrite and folder == config.out)
    except ValueError:
        if folder == config.out:
            raise
        remove_folder(folder)
        return PredictionLines(folder, options)


def _predict_pending(images: Sequence[ImageFile], lines: PredictionLines, process: Process, read: SizedReader) -> None:
    """Adds the predictions of the images that `lines` lacks; threads read the next images meanwhile."""

    def load(image: ImageFile) -> Image:
        return Image(image.image_id or 0, read(image.path, image.size))

    pending = [image for image in images if image.key not in lines]
    done = len(images) - len(pending)
    if done:
        _LOG.info("resuming: %d of %d images are done", done, len(images))
    with closing(prefetch(load, pending, threads=READERS, depth=READERS)) as loaded:
        items = _logging_estimate(zip(pending, loaded, strict=True), len(pending))
        for image, pixels in progress_bar(items, desc="predict", unit="image", initial=done, total=len(images)):
            lines.append(image.key, process(image, pixels))


def _logging_estimate(items: Iterator[T], count: int) -> Iterator[T]:
    """Yields the items; after the second logs the time for all, not by the first, in which kernels are compiled."""
    started = 0.0
    for position, item in enumerate(items):
        if position == 1:
            started = time.perf_counter()
        elif position == 2:
            seconds = time.perf_counter() - started
            _LOG.info(
                "%s images: about %.1f minutes at %.3g images per second",
                f"{count:,}",
                count * seconds / 60,
                1 / seconds,
            )
        yield item


def _process(
    config: PredictConfig, detector: Detector, classifier: LiveClassifier, text_ids: Mapping[int, str]
) -> Process:
    """Returns the function that detects in an image, draws it if the config says so, and returns its results.

    `text_ids` are those of the annotations.
    """
    calibrated = CalibratedDetector(detector, classifier.scorer, **vars(config.fusion()))
    detector = map_detector(detector, classifier.scorer.class_map)
    original = CalibratedDetector(detector, **vars(config.fusion(mode="original")))

    def process(file: ImageFile, image: Image) -> list[Record]:
        ((detections, masks),) = calibrated.predict(image)
        if config.save_images:
            (before,) = original.predict(image)
            options: dict[str, Any] = {"max_drawn": config.max_drawn, "changed_only": config.changed_only}
            drawn = draw_pair(image.pixels, before, (detections, masks), classifier.names, **options)
            save_drawing(drawn, drawing_file(config.out, file))
        return _records(file, detections, masks, classifier, text_ids)

    return process


def _check_outputs(config: PredictConfig, images: Sequence[ImageFile]) -> None:
    """Raises, before anything heavy begins, for files that would collide."""
    drawings = [drawing_file(config.out, image) for image in images if config.save_images]
    twice = next((file for file, count in Counter(drawings).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"save_images: two of the images would be drawn into {twice}")
    inputs = {image.path.resolve() for image in images}
    for output in (config.out / PREDICTIONS_FILE, config.out / LINES_FILE, *drawings):
        if output.resolve() in inputs:
            raise ValueError(f"out is {config.out}, whose {output.name} is one of the images: give another folder")
    if (config.out / PREDICTIONS_FILE).exists():  # else the lock would create the folder that `out` is in
        with one_writer(config.out):
            refuse_finished(config.out, config.overwrite)


def _check_names(classifier: LiveClassifier, annotations: Annotations) -> None:
    """Raises ValueError naming a category that has another name in the annotation file."""
    names = dict(annotations.classes[["category_id", "name"]].itertuples(index=False))
    for category_id, name in zip(classifier.category_ids, classifier.names, strict=True):
        if names.get(category_id, name) != name:
            raise ValueError(
                f"{annotations.path}: category {category_id} is {names[category_id]!r}, {name!r} in the classifier"
            )


def _options(config: PredictConfig, detector: Detector, annotations: Annotations | None) -> dict[str, str]:
    """Returns what the predictions depend on; files count by their content."""
    description = detector.description
    fingerprints = {
        "weights_fingerprint": description.get("tensors_sha256") or description["weights_sha256"],
        "config_file_fingerprint": description.get("config_sha256", ""),
        "annotations_fingerprint": "" if annotations is None else annotations.sha256,
    }
    if config.head is not None:
        fingerprints["head_fingerprint"] = files_fingerprint(files_of(config.head))
    if config.fit_cache is not None:
        fingerprints["fit_cache_fingerprint"] = open_cache(config.fit_cache).fingerprint
    # Folders that lack one of these are from the time when its default was the only value.
    left_out = [*RUNTIME_OPTIONS, *(["precision"] if config.precision == "fp32" else [])]
    left_out += [] if config.changed_only else ["changed_only"]
    return options_as_text(config, left_out=left_out, **fingerprints)


def _records(
    file: ImageFile,
    detections: ImageDetections,
    masks: np.ndarray | None,
    classifier: LiveClassifier,
    text_ids: Mapping[int, str],
) -> list[Record]:
    """Returns LVIS results, best first; without an annotation file they have the file name, but no image id."""
    boxes = detections.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    ids, names = classifier.category_ids, classifier.names
    image: Record = {} if file.image_id is None else {"image_id": text_ids.get(file.image_id, file.image_id)}
    image["file_name"] = str(file.path)
    records: list[Record] = [
        {**image, "category_id": ids[label], "name": names[label], "score": score, "bbox": box}
        for box, label, score in zip(
            boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
        )
    ]
    if masks is not None:
        for record, rle in zip(records, encode_bitmaps(masks), strict=True):
            record["segmentation"] = rle
    return records
