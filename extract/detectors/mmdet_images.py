"""Reads image files with the first step of an mmdetection config's test pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import TRANSFORMS

from extract.data.decoding import ImageReader, naming_image

DEFAULT_STEP = {"type": "LoadImageFromFile"}
STORAGE_OPTIONS = ("backend_args", "file_client_args", "ignore_empty")
"""Options of where images are stored, and of leaving out what cannot be read. Files are local here, and an error."""


def image_reader(step: dict[str, Any]) -> ImageReader:
    """Returns a reader that runs a loading step, with its colour type and backend; to be called in mmdet's scope.

    It returns colour images as RGB, although mmdetection's are BGR: see `swap_colours`. Other kinds of pixels, for
    which a config may ask, it returns as they are, and the type as it is before `to_float32`.
    """
    kind = step["type"]
    if getattr(kind, "__name__", kind).endswith("LoadImageFromNDArray"):
        step = DEFAULT_STEP  # the config takes arrays only
    options = {key: value for key, value in step.items() if key not in STORAGE_OPTIONS}
    # `LoadImageFromNDArray`, the first step of the adapter's pipeline, converts to floats.
    load = TRANSFORMS.build(options | ({"to_float32": False} if "to_float32" in options else {}))

    def read(path: Path) -> np.ndarray:
        with naming_image(path):
            return swap_colours(load({"img_path": str(path)})["img"])

    return read


def swap_colours(pixels: np.ndarray) -> np.ndarray:
    """Returns a view of (H, W, 3) pixels in BGR as RGB, and the reverse; others, such as grey, as they are."""
    return pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels
