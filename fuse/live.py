"""A detector and a calibrated classifier as one detector, on new images.

Images go through the detector's own forward pass. Scores, fusion and NMS are the functions that run on a cache. The
framework then makes its masks and its own kind of result.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np
from PIL import Image as PILImage

from calib.heads import Head
from calib.scoring import Scorer
from extract.data.decoding import ImageReader, decode_image, rgb_pixels
from extract.data.images import batches_of_one_size, unflip_rois
from extract.detectors.base import Detector, ForwardOutput, Image, ImageDetections, reader_of
from extract.detectors.class_map import map_detector
from extract.hidden import Forward, forward_at_level
from extract.utils.progress import FIRST_LINE, progress_bar
from extract.utils.summarized import Summarized
from fuse.config import FusionConfig
from fuse.drawing import MaskedDetections
from fuse.fusion import Fusion
from fuse.learned import LearnedFusion
from fuse.learned_io import load_calibrated
from fuse.merge import merge_image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ImageLike = Union[np.ndarray, "Tensor", PILImage.Image, str, os.PathLike, Image]
"""(H, W, 3) uint8 RGB array, (3, H, W) tensor of uint8 or of floats from 0 to 1, PIL image, path of a file, which is
read as the detector's framework reads it, or an `Image` that was read so."""


@dataclass(frozen=True)
class View:
    """One augmented version of an image in test-time augmentation (TTA).

    Attributes:
        size: (shorter, longer) edge in pixels that the image is resized to; None for the detector's own.
        flip: flipped left to right.
    """

    size: tuple[int, int] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for impossible edges."""
        if self.size is not None and not 0 < self.size[0] <= self.size[1]:
            raise ValueError(f"size is {self.size}, expected (shorter, longer) edge in pixels")


class CalibratedDetector(Summarized):
    """A trained detector whose scores are fused with those of a calibrated classifier.

    A call returns, for each image, what the framework's own predictor returns, masks included: a dict (torchvision),
    `{"instances": Instances}` (detectron2), a `DetDataSample` (mmdetection).

    Several views are test-time augmentation (the paper's multi-scale testing, Table 10): each view is detected
    separately, and per-class NMS joins the detections of all. Masks are those of the first view.

    Attributes:
        detector: the original detector, its outputs in the order of the classifier's classes.
        fusion: the resolved `fuse.FusionConfig` and its scorers.
        level: feature level that the scorers need.
        batch_size: images per forward pass.
    """

    def __init__(
        self,
        detector: Detector,
        calibrated: Scorer | str | os.PathLike | None = None,
        *,
        views: Sequence[View] = (View(),),
        batch_size: int = 4,
        **options: object,
    ):
        """
        Args:
            detector: from `extract.load_detector`.
            calibrated: a head or a learned fusion, the folder of one, or another scorer; None for modes that need none.
            views: at least one; masks are made in the first, so it is not flipped.
            batch_size: images per forward pass; only images of one size share a pass.
            options: fields of `fuse.FusionConfig`: mode, tail, score_threshold, max_detections …

        Raises:
            ValueError: the head was trained for another detector; an option that is not valid.
        """
        if not views or views[0].flip:
            raise ValueError("views: expected at least one, the first not flipped, since masks are made in it")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if isinstance(calibrated, str | os.PathLike):
            calibrated = load_calibrated(Path(calibrated))
        if isinstance(calibrated, Head | LearnedFusion):
            calibrated.check_detector(detector)
            calibrated = _on_device(calibrated, detector.device)
        detector = map_detector(detector, getattr(calibrated, "class_map", None))
        config = FusionConfig.from_options(**options)
        if config.mode == "props-gt":
            raise ValueError("mode is 'props-gt', which needs ground truth: new images have none")
        counts = () if calibrated is None else calibrated.instance_counts
        if calibrated is not None and not len(counts) and config.tail_mask is None:
            raise ValueError(
                f"tail is {config.tail}: give tail_mask, a bool array; {calibrated.name} has no training counts"
            )
        self.detector, self.batch_size = detector, batch_size
        self.level = "logits" if calibrated is None else calibrated.level
        self.fusion = Fusion.resolve(config, detector.description, counts, calibrated)
        projections = getattr(calibrated, "projections", ())
        of_views = [detector if view.size is None else detector.resized(*view.size) for view in views]
        self._views = [
            (view, forward_at_level(one, self.level, projections)) for view, one in zip(views, of_views, strict=True)
        ]

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> list[Any]:
        """Detects in each image, in the order of the images; a single image gives a list of one.

        Raises FileNotFoundError or ValueError naming the image that cannot be read or has another shape.
        """
        single = isinstance(images, str | os.PathLike | PILImage.Image | Image) or getattr(images, "ndim", 0) == 3
        every = cast("Iterable[ImageLike]", [images] if single else images)
        reader = reader_of(self.detector)
        loaded = [load_image(i, image, reader) for i, image in enumerate(every)]
        results: list[Any] = [None] * len(loaded)
        batches = list(batches_of_one_size([image.pixels.shape[:2] for image in loaded], self.batch_size))
        shown = len(batches) > 1
        with progress_bar(total=len(loaded), desc="detect", unit="image", shown=shown, delay=FIRST_LINE) as bar:
            for batch in batches:
                for i, result in zip(batch, self._detect([loaded[i] for i in batch]), strict=True):
                    results[i] = result
                bar.update(len(batch))
        return results

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        about = self.detector.description
        views = [
            f"{'own size' if view.size is None else '{:,} to {:,} pixels'.format(*view.size)}{', flipped' * view.flip}"
            for view, _ in self._views
        ]
        return [
            ("Calibrated detector", f"{about['name']} ({about['framework']})"),
            *((name.lower() if name == "Fusion" else name, text) for name, text in self.fusion.summary()),
            ("views", "; ".join(views)),
            ("device", f"{self.detector.device}, {self.batch_size} image(s) per forward pass"),
        ]

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> list[MaskedDetections]:
        """Detects as a call does, but returns pairs of arrays: (detections, masks).

        Masks are (D, H, W) bool, None where the detector has none.
        """
        return [MaskedDetections(*self.detector.to_arrays(result)) for result in self(images)]

    def _detect(self, images: list[Image]) -> list[Any]:
        outputs, found = zip(*(self._detect_view(images, *view) for view in self._views), strict=True)
        detections = found[0] if len(found) == 1 else [self._merged(views) for views in zip(*found, strict=True)]
        return outputs[0].to_framework(detections)

    def _detect_view(
        self, images: list[Image], view: View, forward: Forward
    ) -> tuple[ForwardOutput, list[ImageDetections]]:
        if view.flip:
            images = [Image(image.image_id, image.pixels[:, ::-1]) for image in images]
        output = forward(images, None)
        rois = [unflip_rois(one) if view.flip else one for one in output.rois]
        return output, [self.fusion.detections(one) for one in rois]

    def _merged(self, views: Sequence[ImageDetections]) -> ImageDetections:
        """Returns one image's detections of all views, merged."""
        threshold, limit = self.fusion.iou_threshold, self.fusion.max_detections
        return merge_image(views, self.detector.num_classes, iou_threshold=threshold, max_detections=limit)[0]


def _on_device(scorer: Scorer, device: torch.device) -> Scorer:
    """Returns a scorer whose heads are on a device; the caller's stay on theirs."""
    if isinstance(scorer, LearnedFusion):
        return replace(scorer, scorers=tuple(_on_device(one, device) for one in scorer.scorers))
    if isinstance(scorer, Head) and next(scorer.parameters()).device != device:
        return copy.deepcopy(scorer).to(device)
    return scorer


def load_image(image_id: int, image: ImageLike, reader: ImageReader = decode_image) -> Image:
    """Returns an image as RGB pixels (H, W, 3) uint8; reads it if it is a path.

    Raises FileNotFoundError for a path without a file, ValueError naming the image's id for other shapes and values.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, str | os.PathLike):
        return Image(image_id, reader(Path(image)))
    if isinstance(image, PILImage.Image):
        return Image(image_id, rgb_pixels(image))
    if hasattr(image, "permute"):  # a tensor, recognised without importing torch
        image = _tensor_pixels(image_id, cast("Tensor", image))
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"image {image_id}: {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) RGB, or a tensor (3, H, W)"
        )
    return Image(image_id, pixels)


def _tensor_pixels(image_id: int, image: Tensor) -> np.ndarray:
    """Converts a tensor (3, H, W), uint8 or floats from 0 to 1, to a uint8 array (H, W, 3)."""
    pixels = image.permute(1, 2, 0) if image.ndim == 3 else image
    if pixels.is_floating_point() and pixels.numel():
        low, high = (float(value) for value in pixels.aminmax())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(f"image {image_id}: floats from {low:g} to {high:g}, expected 0 to 1")
        pixels = (pixels * 255).round().byte()
    return pixels.cpu().numpy()
