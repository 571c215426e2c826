"""Decodes image files to pixels, and turns pixels by the EXIF orientation of their file.

`decode_image` and `decode_unturned` use PIL. The adapter of a framework with a reader of its own uses that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from extract.utils.errors import one_line

ImageReader = Callable[[Path], np.ndarray]
"""Path of a file → (H, W, 3) uint8 RGB, or pixels of the kind that the config of the detector asks for.

Raises FileNotFoundError, or ValueError naming a file that is no image.
"""
ORIENTATION = 0x0112
"""EXIF tag: how the pixels must be turned to be upright; 5 to 8 exchange height and width."""
NOTHING, COLUMNS, BOTH, ROWS = np.s_[:], np.s_[:, ::-1], np.s_[::-1, ::-1], np.s_[::-1]
FLIPS: dict[int, Any] = dict(enumerate((NOTHING, COLUMNS, BOTH, ROWS) * 2, start=1))
"""Orientation → what is reversed to make an image upright; from 5 on, after height and width are exchanged."""
INVERSES = {6: 8, 8: 6}
"""Quarter turns; every other orientation is its own inverse."""
WIDTH, LENGTH = 256, 257
"""TIFF tags."""


class Orientation(NamedTuple):
    """The EXIF orientation of a file (1: upright), and (height, width) of its pixels as they are stored."""

    value: int
    stored_size: tuple[int, int]


def decode_image(path: Path) -> np.ndarray:
    """Reads a file as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    16-bit grey keeps its high bytes, as in OpenCV; PIL alone would clip it to white. Transparency is dropped.

    Raises FileNotFoundError, or ValueError for a file that is no image.
    """
    with naming_image(path), PILImage.open(path) as image:
        orientation = 1 if image.format == "TIFF" else _orientation_of(image)  # PIL turns TIFF itself
        return np.ascontiguousarray(turn(rgb_pixels(image), orientation))


def decode_unturned(path: Path) -> np.ndarray:
    """Reads a file as `decode_image` does, but leaves it as it is stored."""
    with naming_image(path), PILImage.open(path) as image:
        return rgb_pixels(image)


def rgb_pixels(image: PILImage.Image) -> np.ndarray:
    """Returns an image of any mode as (H, W, 3) uint8 RGB; see `decode_image`."""
    # Of files of 16-bit grey, PIL reads PPM, and before version 11.3 PNG, as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # has the same colours; PIL warns of the direct way
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def naming_image(path: Path) -> Iterator[None]:
    """Turns any exception within the block into a ValueError of one line that names the image.

    Raises FileNotFoundError if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything when a file is damaged
        raise ValueError(f"{path}: not a readable image: {one_line(error)}") from None


def is_deep(path: Path) -> bool:
    """Returns whether a file that PIL can open has grey values of more than 8 bits: 16 bits, integers or floats."""
    try:
        with PILImage.open(path) as image:
            return image.mode in ("I", "F") or image.mode.startswith("I;16")
    except (OSError, ValueError):
        return False


def read_orientation(path: Path) -> Orientation:
    """Reads a file's EXIF orientation. Raises as `naming_image` does."""
    with naming_image(path), PILImage.open(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # PIL gives the size of the upright image
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height = tags[WIDTH], tags[LENGTH]
        return Orientation(_orientation_of(image), (height, width))


def turn(pixels: np.ndarray, orientation: int, *, back: bool = False) -> np.ndarray:
    """Returns a view of stored pixels (H, W, …) turned upright by an EXIF orientation, or with `back` the inverse."""
    if back:
        orientation = INVERSES.get(orientation, orientation)
    return (pixels.swapaxes(0, 1) if orientation >= 5 else pixels)[FLIPS[orientation]]


def _orientation_of(image: PILImage.Image) -> int:
    """Returns the EXIF orientation; 1, upright, if there is none or it is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return int(value) if value in FLIPS else 1
    except Exception:  # damaged EXIF raises all kinds of errors
        return 1
