"""Reads images at the sizes of annotations, batches them by size, and flips boxes and RoIs left to right."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from extract.data.decoding import ImageReader, decode_image, is_deep, read_orientation, turn
from extract.data.image_files import find_image
from extract.rois import RoIs

log = logging.getLogger(__name__)
MAX_CLIPPED = 0.9
"""Share of the pixels."""


class SizedReader:
    """Reads image files at the sizes that annotations have.

    Annotations are made on turned or on unturned images, and their size tells which. Where an image of a framework's
    reader has height and width exchanged, and its file an EXIF orientation that does so, the image is turned as the
    annotations have it. The first such image is logged, and `log_turned` logs their number; so is a first image of
    deep grey of which the reader leaves only black and white.
    """

    def __init__(self, reader: ImageReader = decode_image) -> None:
        self._reader = reader
        self._read, self._turned = itertools.count(), itertools.count()  # threads share them
        self._first = ""

    def __call__(self, path: Path, size: tuple[int, int] | None) -> np.ndarray:
        """Reads an image, (H, W, 3) uint8 RGB or as the reader returns it.

        `size` is (height, width), None if unknown. Raises FileNotFoundError, or ValueError for a file that is no image
        or of another size.
        """
        pixels = self._reader(path)
        if next(self._read) == 0:
            _log_if_clipped(path, pixels)
        if size is None or pixels.shape[:2] == size:
            return pixels
        if pixels.shape[:2] == size[::-1]:
            orientation, stored_size = read_orientation(path)
            if orientation >= 5:
                back = pixels.shape[:2] != stored_size
                self._log_first(path, size, orientation, back)
                return turn(pixels, orientation, back=back)
        raise ValueError(
            f"{path}: image is {pixels.shape[1]}×{pixels.shape[0]}, the annotations have {size[1]}×{size[0]}"
        )

    def log_turned(self) -> None:
        """Logs how many of the images that have been read were turned to the annotations' size, if any were."""
        turned, read = next(self._turned), next(self._read)
        if turned:
            text = "%s of %s images were turned, or left unturned, to have the size in the annotations, such as %s"
            log.warning(text, f"{turned:,}", f"{read:,}", self._first)

    def _log_first(self, path: Path, size: tuple[int, int], orientation: int, back: bool) -> None:
        if next(self._turned) == 0:
            self._first = str(path)
            log.warning(
                "%s and images like it are %s by their EXIF orientation (%d), unlike the detector's framework reads "
                "them: the annotations' size, %d×%d, is of the image %s",
                path,
                "not turned" if back else "turned",
                orientation,
                size[1],
                size[0],
                "as it is stored" if back else "turned upright",
            )


def _log_if_clipped(path: Path, pixels: np.ndarray) -> None:
    clipped = float(np.isin(pixels, (0, 255)).mean())
    if clipped > MAX_CLIPPED and is_deep(path):
        log.warning(
            "%s: %.0f%% of the pixels are 0 or 255, because the reader of the detector's framework clips grey of more "
            "than 8 bits",
            path,
            100 * clipped,
        )


def read_image(
    folder: Path, names: tuple[str, ...], size: tuple[int, int], reader: ImageReader = decode_image
) -> np.ndarray:
    """Reads the image of `find_image` with a `SizedReader`, as (H, W, 3) uint8 RGB; raises as they do."""
    return SizedReader(reader)(find_image(folder, names), size)


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
