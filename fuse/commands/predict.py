"""`python -m fuse predict`: detections in image files, and drawings of them before and after calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from extract.data.images import decode_image
from extract.detectors import load_detector
from extract.detectors.base import ImageDetections
from extract.utils.files import replacing, write_bytes
from fuse.commands.config import PredictConfig
from fuse.commands.inputs import LiveClassifier, load_live_classifier
from fuse.drawing import draw_detections, side_by_side
from fuse.live import CalibratedDetector

PREDICTIONS_FILE = "predictions.json"


def predict(config: PredictConfig) -> None:
    """Writes predictions.json, and with `save_images` a drawing of every image."""
    _check_files(config)
    detector = load_detector(config)
    classifier = load_live_classifier(config, detector)
    calibrated = CalibratedDetector(detector, classifier.scorer, **vars(config.fusion()))
    original = CalibratedDetector(detector, **vars(config.fusion(mode="original")))
    records = []
    for path in tqdm(config.images, desc="predict", unit="image", disable=None):
        ((detections, masks),) = calibrated.predict(path)
        records += _records(path, detections, masks, classifier)
        if config.save_images:
            sides = [*original.predict(path), (detections, masks)]
            _draw(path, _drawing_file(config, path), sides, classifier.names, config.max_drawn)
    write_bytes(config.out / PREDICTIONS_FILE, msgspec.json.encode(records))
    print(f"{config.out / PREDICTIONS_FILE}: {len(records):,} detections in {len(config.images):,} images")


def _check_files(config: PredictConfig) -> None:
    """Raises, before anything heavy begins, for an image that does not exist and for files that would collide."""
    for path in config.images:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image")
    stems = [path.stem for path in config.images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if config.save_images and twice is not None:
        raise ValueError(f"save_images: two of the images would be drawn into {config.out / twice}.png")
    inputs = {path.resolve() for path in config.images}
    drawings = [_drawing_file(config, path) for path in config.images if config.save_images]
    for output in (config.out / PREDICTIONS_FILE, *drawings):
        if output.resolve() in inputs:
            raise ValueError(f"out is {config.out}, whose {output.name} is one of the images: give another folder")
    if (config.out / PREDICTIONS_FILE).exists() and not config.overwrite:
        raise ValueError(f"{config.out}: holds {PREDICTIONS_FILE}; use --overwrite")


def _drawing_file(config: PredictConfig, path: Path) -> Path:
    return config.out / f"{path.stem}.png"


def _records(
    path: Path, detections: ImageDetections, masks: np.ndarray | None, classifier: LiveClassifier
) -> list[dict[str, object]]:
    """Returns LVIS results with the image's file name in place of its id, best first."""
    boxes = detections.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    ids, names = classifier.category_ids, classifier.names
    records: list[dict[str, object]] = [
        {"file_name": str(path), "category_id": ids[label], "name": names[label], "score": score, "bbox": box}
        for box, label, score in zip(
            boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
        )
    ]
    if masks is not None and len(masks):
        from hotcoco import mask as rle

        encoded: Any = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
        for record, one in zip(records, encoded, strict=True):
            record["segmentation"] = {"size": list(one["size"]), "counts": one["counts"].decode()}
    return records


def _draw(
    path: Path,
    file: Path,
    sides: list[tuple[ImageDetections, np.ndarray | None]],
    names: tuple[str, ...],
    max_drawn: int,
) -> None:
    pixels = decode_image(path)
    drawing = side_by_side([draw_detections(pixels, *side, names, max_drawn) for side in sides])
    with replacing(file) as partial:
        drawing.save(partial, format="png")
