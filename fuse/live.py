"""A detector and a calibrated head as one detector, live on new images.

The images go through the detector's own forward pass; scores, fusion and suppression are the functions that the
offline path runs on a cache; the framework then makes its masks and its own kind of result.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image as PILImage

from calib.head_io import load_head
from calib.heads import Head
from calib.scoring import Scorer
from extract.data.images import batches_of_one_size, decode_image, unflip_rois
from extract.detectors.base import Detector, ForwardOutput, Image, ImageDetections
from fuse.inference import Row, ScoreCache, boxes_of, detect_image, prepare
from fuse.merge import merge_image
from fuse.ops.nms import class_nms

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[np.ndarray, "Tensor", PILImage.Image, str, os.PathLike]
"""(H, W, 3) uint8 RGB array, (3, H, W) tensor of uint8 or of floats from 0 to 1, PIL image, or path of a file."""


@dataclass(frozen=True)
class View:
    """One of the ways in which an image is looked at: resized to other edges, or mirrored left to right.

    Attributes:
        size: (shorter, longer) edge in pixels; None takes the detector's own.
        flip: mirrored.
    """

    size: tuple[int, int] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for edges that no image can have."""
        if self.size is not None and not 0 < self.size[0] <= self.size[1]:
            raise ValueError(f"size is {self.size}, expected (shorter, longer) edge in pixels")


class CalibratedDetector:
    """A trained detector whose scores are combined with those of a calibrated head.

    Called with images it returns, for each, what the framework's own predictor returns: a dict (torchvision),
    `{"instances": Instances}` (detectron2), a `DetDataSample` (mmdetection), masks included.

    With several views (the paper's multi-scale testing, Table 10) each is detected by itself, and the detections
    of all are joined by per-class suppression; masks are those of the first view.
    """

    def __init__(
        self,
        detector: Detector,
        calibrated: Head | Scorer | str | os.PathLike | None = None,
        *,
        views: Sequence[View] = (View(),),
        batch_size: int = 4,
        **options,
    ):
        """
        Args:
            detector: from `extract.load_detector`.
            calibrated: a head, the folder of one, or another scorer, whose `level`, if it has one, is that of the
                features it takes; None for the modes that need none.
            views: how each image is looked at, at least one way.
            batch_size: images per forward pass; only images of one size share one.
            options: the other fields of `fuse.Row`: mode, tail, score_threshold, max_detections …

        Raises:
            ValueError: the head was made for another detector; an option that is not valid.
        """
        if not views or views[0].flip:
            raise ValueError("views: the first is to be one that is not mirrored, masks are made in it")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if isinstance(calibrated, str | os.PathLike):
            calibrated = load_head(calibrated)
        self.detector, self.batch_size = detector, batch_size
        self.level = getattr(calibrated, "level", "logits")
        if isinstance(calibrated, Head):
            calibrated.check_detector(detector)
            self.level = calibrated.info.level
            if next(calibrated.parameters()).device != detector.device:
                calibrated = copy.deepcopy(calibrated).to(detector.device)  # the caller's stays where it is
        counts = np.array(getattr(calibrated, "instance_counts", ()))
        row = Row.of(calibrated=calibrated, **options)
        if row.mode == "props-gt":
            raise ValueError("mode is 'props-gt', which needs ground truth: new images have none")
        if calibrated is not None and not len(counts) and not np.ndim(row.tail):
            raise ValueError(f"tail is {row.tail}: give a bool array, {calibrated.name} knows no training counts")
        self.row = prepare(row, detector.description, counts)
        none = np.empty((0, 4)), np.empty((0, detector.num_classes + 1))  # checks the limits before the first image
        class_nms(*none, self.row.iou_threshold, self.row.score_threshold, self.row.max_detections)
        self._views = [(view, self._seen_by(view)) for view in views]

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> list[Any]:
        """Detections of each image, in the order of the images; a single image is a list of one.

        Raises FileNotFoundError or ValueError naming the image that cannot be read or has another shape.
        """
        single = isinstance(images, str | os.PathLike | PILImage.Image) or getattr(images, "ndim", 0) == 3
        loaded = [_load(i, picture) for i, picture in enumerate([images] if single else images)]
        results = [None] * len(loaded)
        for batch in batches_of_one_size([image.pixels.shape[:2] for image in loaded], self.batch_size):
            for i, result in zip(batch, self._detect([loaded[i] for i in batch]), strict=True):
                results[i] = result
        return results

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> list[tuple[ImageDetections, np.ndarray | None]]:
        """The same in plain arrays: boxes, labels, scores, and masks (D, H, W) bool where the detector has them."""
        return [self.detector.to_arrays(result) for result in self(images)]

    def _detect(self, images: list[Image]) -> list[Any]:
        passes = [self._forward(images, view, detector) for view, detector in self._views]
        first, found = passes[0]
        if len(passes) > 1:
            every = zip(*(of_view for _, of_view in passes), strict=True)
            row = self.row
            found = [
                merge_image(
                    parts,
                    self.detector.num_classes,
                    iou_threshold=row.iou_threshold,
                    max_detections=row.max_detections,
                )[0]
                for parts in every
            ]
        return first.to_framework(found)

    def _forward(
        self, images: list[Image], view: View, detector: Detector
    ) -> tuple[ForwardOutput, list[ImageDetections]]:
        if view.flip:
            images = [Image(image.image_id, image.pixels[:, ::-1]) for image in images]
        forward, found = detector.forward(images, self.level), []
        for rois in forward.rois:
            rois = unflip_rois(rois) if view.flip else rois
            roi, label, score = detect_image(self.row, rois, ScoreCache(rois), self.row.score_threshold)
            found.append(ImageDetections(boxes_of(rois, roi, label), label, score))
        return forward, found

    def _seen_by(self, view: View) -> Detector:
        return self.detector if view.size is None else self.detector.resized(*view.size)


def _load(index: int, picture: ImageLike) -> Image:
    """Image number `index` of a call as RGB pixels."""
    if isinstance(picture, str | os.PathLike):
        return Image(index, decode_image(Path(picture)))
    if isinstance(picture, PILImage.Image):
        return Image(index, np.asarray(picture.convert("RGB")))
    if hasattr(picture, "permute"):  # a tensor; torch is not needed to tell
        picture = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
        if picture.is_floating_point() and picture.numel():
            low, high = (float(value) for value in picture.aminmax())
            if not (low >= 0 and high <= 1):  # NaN is neither
                raise ValueError(f"image {index}: floats from {low:g} to {high:g}, expected 0 to 1")
            picture = (picture * 255).round().byte()
        picture = picture.cpu().numpy()
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"image {index}: {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) RGB, or a tensor (3, H, W)"
        )
    return Image(index, pixels)
