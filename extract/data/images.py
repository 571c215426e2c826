"""Reads images, batches them by size, and flips boxes and RoIs left to right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from extract.rois import RoIs


def read_image(folder: Path, names: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """Reads the first of `names` that exists in `folder`, as (H, W, 3) uint8 RGB.

    Raises FileNotFoundError naming the folder and the names, ValueError for a file that is no image or not of `size`
    (height, width).
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: has no {' or '.join(names) or 'image without a file name'}")
    pixels = decode_image(path)
    if pixels.shape[:2] != size:
        raise ValueError(
            f"{path}: image is {pixels.shape[1]}×{pixels.shape[0]}, the annotations have {size[1]}×{size[0]}"
        )
    return pixels


def decode_image(path: Path) -> np.ndarray:
    """Reads a file as (H, W, 3) uint8 RGB, rotated by its EXIF orientation as the frameworks' readers do.

    Raises FileNotFoundError, or ValueError for a file that is no image.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with PILImage.open(path) as image:
            return np.asarray(_rotated_by_exif(image).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from None


def _rotated_by_exif(image: PILImage.Image) -> PILImage.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF raises all kinds of errors; damaged pixels raise again when they are decoded
        return image


def batches_of_one_size(sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Yields positions of images in batches of at most `limit` of the same size (height, width).

    Padding an image to the size of a larger one would change its features.
    """
    for _, group in groupby(sorted(range(len(sizes)), key=sizes.__getitem__), key=sizes.__getitem__):
        members = list(group)
        yield from (members[i : i + limit] for i in range(0, len(members), limit))


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Returns xyxy boxes (…, 4) in the image flipped left to right."""
    flipped = boxes.copy()
    flipped[..., 0], flipped[..., 2] = width - boxes[..., 2], width - boxes[..., 0]
    return flipped


def unflip_rois(rois: RoIs) -> RoIs:
    """Returns the RoIs of a flipped image in coordinates of the original image."""
    return replace(
        rois,
        proposals=flip_boxes(rois.proposals, rois.width),
        boxes=flip_boxes(rois.boxes, rois.width),
        masks=None if rois.masks is None else rois.masks[:, :, ::-1],
        flipped=True,
    )
