"""`python -m fuse predict`: detections in single images, and pictures of them before and after calibration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from calib.head_io import load_head
from calib.scoring import Original
from extract.data.images import decode_image
from extract.detectors import load_detector
from extract.detectors.base import ImageDetections
from extract.utils.files import replacing, write_bytes
from extract.utils.optional import require
from fuse.live import CalibratedDetector
from fuse.live_config import PredictConfig

RESULTS = "predictions.json"
LEGIBLE = 480
"""Pixels of a drawn image's shorter edge, at least: class names must fit in."""


def predict(config: PredictConfig) -> None:
    """Writes predictions.json, and with `save_images` a picture of every image."""
    _check_names(config)
    if config.save_images:
        require("torchvision", "torchvision")
    head = load_head(config.head)
    head, info = head.averaged(config.stage_average or head.info.stage_average), head.info
    detector = load_detector(config)
    names = ("tail", "score_threshold", "max_detections", "iou_threshold", "threshold", "scale")
    options = {name: getattr(config, name) for name in names}
    options["original"] = Original.from_description(detector.description, config.stage_average)
    after = CalibratedDetector(detector, head, mode=config.mode, **options)
    before = CalibratedDetector(detector, head, mode="original", **options) if config.save_images else None
    records = []
    for path in tqdm(config.images, desc="predict", unit="image", disable=None):
        ((detected, masks),) = after.predict(path)
        records += _records(path, detected, masks, info.category_ids, info.names)
        if before:
            picture = _side_by_side(path, [*before.predict(path), (detected, masks)], info.names, config.shown)
            with replacing(_drawn(config, path)) as partial:
                picture.save(partial, format="png")
    write_bytes(config.out / RESULTS, msgspec.json.encode(records))
    print(f"{config.out / RESULTS}: {len(records):,} detections in {len(config.images):,} images")


def _check_names(config: PredictConfig) -> None:
    """Raises before anything heavy begins for an image that is not there, and for files that would collide."""
    for path in config.images:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image")
    stems = [path.stem for path in config.images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if config.save_images and twice is not None:
        raise ValueError(f"save_images: two of the images would be drawn into {config.out / twice}.png")
    inputs = {path.resolve() for path in config.images}
    for target in (config.out / RESULTS, *(_drawn(config, path) for path in config.images if config.save_images)):
        if target.resolve() in inputs:
            raise ValueError(f"out is {config.out}, whose {target.name} is one of the images: give another folder")
    if (config.out / RESULTS).exists() and not config.overwrite:
        raise ValueError(f"{config.out}: holds {RESULTS}; use --overwrite")


def _drawn(config: PredictConfig, path: Path) -> Path:
    """The picture that `save_images` makes of an image."""
    return config.out / f"{path.stem}.png"


def _records(
    path: Path, detected: ImageDetections, masks: np.ndarray | None, ids: tuple[int, ...], names: tuple[str, ...]
) -> list[dict]:
    """LVIS results with the image's name in place of its id, best first."""
    boxes = detected.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    records = [
        {"file_name": str(path), "category_id": ids[c], "name": names[c], "score": s, "bbox": b}
        for b, c, s in zip(boxes.tolist(), detected.labels.tolist(), detected.scores.tolist(), strict=True)
    ]
    if masks is not None and len(masks):
        from hotcoco import mask as rle

        for record, one in zip(records, rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8)), strict=True):
            record["segmentation"] = {"size": list(one["size"]), "counts": one["counts"].decode()}
    return records


def _side_by_side(path: Path, sides: list, names: tuple[str, ...], shown: int):
    """The image with the best detections of each side, left to right, as a PIL image."""
    import torch
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    pixels, drawn, best = decode_image(path).transpose(2, 0, 1), [], slice(shown)
    zoom = -(-LEGIBLE // min(pixels.shape[1:]))
    for detected, masks in sides:
        canvas = torch.from_numpy(_zoomed(pixels, zoom))
        if masks is not None and len(masks):
            canvas = draw_segmentation_masks(canvas, torch.from_numpy(_zoomed(masks[best], zoom)), alpha=0.5)
        if len(detected.scores):
            texts = [f"{names[c]} {s:.2f}" for c, s in zip(detected.labels[best], detected.scores[best], strict=True)]
            canvas = draw_bounding_boxes(canvas, torch.from_numpy(detected.boxes[best] * zoom), texts, width=2)
        drawn.append(canvas)
    return to_pil_image(torch.cat(drawn, dim=2))


def _zoomed(picture: np.ndarray, times: int) -> np.ndarray:
    """(…, H, W) enlarged by a whole number."""
    return picture.repeat(times, -2).repeat(times, -1)
