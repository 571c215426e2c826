"""The interface of all detector adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from extract.cache.format import Layers
from extract.data.decoding import ImageReader, decode_image
from extract.rois import RoIs

if TYPE_CHECKING:
    import torch

SelectProposals = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(index of an image in the batch, its proposals (P, 4), best first) → (indices of the proposals to keep, ground-truth
boxes (G, 4) to append)."""


NO_CLASS = "N/A"
"""Name of an output that is no class, as in torchvision's list of COCO's classes."""


def select_no_proposals(image: int, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Selects no proposal: only the feature maps of the forward pass are needed, and adapters leave out the RPN."""
    return np.empty(0, np.int64), np.empty((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class Image:
    """An image and its id.

    Pixels are (H, W, 3) uint8 RGB. Those of a detector's own `read_image` may be of another kind, such as grey, (H, W)
    or (H, W, C), where its config asks for that.
    """

    image_id: int
    pixels: np.ndarray


class ImageDetections(NamedTuple):
    """One image's detections, best first: boxes (D, 4) float32 xyxy pixels, labels (D,) int64, scores (D,) float32."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __repr__(self) -> str:
        scores = f", scores {self.scores.max():.3f} to {self.scores.min():.3f}" if len(self.scores) else ""
        return f"ImageDetections({len(self.scores):,} of {len(np.unique(self.labels)):,} classes{scores})"


class OwnClasses(NamedTuple):
    """The classes of a detector as its framework or its files name them.

    Attributes:
        names: of each output, background left out; `NO_CLASS` for an output that is no class.
        source: where they are from, for messages.
        category_ids: of each output in the dataset that it was trained on; empty if unknown.
    """

    names: tuple[str, ...]
    source: str
    category_ids: tuple[int, ...] = ()


class OwnThresholds(NamedTuple):
    """What the framework's own inference keeps: scores above a threshold, and the best so many of an image.

    `max_detections` is None where all are kept.
    """

    score_threshold: float
    max_detections: int | None


class ForwardOutput(Protocol):
    """The output of one forward pass over a batch of images."""

    @property
    def rois(self) -> list[RoIs]:
        """RoIs of each image, without labels; features are tensors on the detector's device.

        Boxes are in pixels of the given images. The selected proposals come first, in the order of selection, then the
        appended ground-truth boxes (`is_gt`, objectness 1), which a cascade does not refine from stage to stage.
        """

    def masks(self) -> list[np.ndarray]:
        """Returns class-agnostic mask probabilities of each image's refined boxes, (R, M, M) uint8, times 255."""

    def to_framework(self, detections: Sequence[ImageDetections]) -> list[Any]:
        """Returns each image's detections as the framework's own inference does, with masks predicted for the boxes."""


class Detector(Protocol):
    """A frozen two-stage detector.

    Attributes:
        num_classes: K, without background.
        stages: matching IoU of each stage of the box head.
        description: plain JSON values that a cache records: name, framework, framework_version, weights_sha256,
            tensors_sha256 and settings (see `extract.detectors.identity`), activation ("softmax" or "sigmoid"),
            stage_average ("scores" or "logits"), nms_iou, skip_empty, class_agnostic_boxes, class_agnostic_masks, and
            `POOLED_AFTER_CONVOLUTIONS` and `SCORES_WITH_OBJECTNESS` of `extract.rois` where they are true.
        has_masks: whether it predicts class-agnostic masks, which a cache can store.
        size: (shorter, longer) edge that images are resized to, in pixels.
        own_classes: its classes, in the order of its outputs; None if nothing names them.

    It may also have `read_image`, an `extract.data.decoding.ImageReader` that reads files as its framework does, and
    `own_thresholds`, of type `OwnThresholds`, `half_precision_parts()`, which returns
    `extract.detectors.precision.HalfPrecisionParts`, and `own_inference(image, score_threshold)`, which returns the
    `ImageDetections` of the framework's own inference; extraction compares the adapter with it before it begins.
    """

    num_classes: int
    stages: tuple[float, ...]
    description: dict[str, Any]
    has_masks: bool
    size: tuple[int, int]
    own_classes: OwnClasses | None

    @property
    def device(self) -> torch.device:
        """The model's device."""

    def forward(
        self, images: Sequence[Image], level: str, select_proposals: SelectProposals | None = None
    ) -> ForwardOutput:
        """Runs one forward pass over a batch of images.

        Args:
            images: of one size; the framework would pad images of different sizes to a common one.
            level: feature level to keep: "pooled" (what enters the box head, or its fully connected layers where
                convolutions precede them), "embedding" or "logits" (no features). Level "hidden" follows from "pooled",
                see `extract.hidden`.
            select_proposals: selects the proposals for the box head; by default all that the framework's inference
                uses.
        """

    def forward_preprocessed(
        self, inputs: Any, image_ids: Sequence[int], level: str, select_proposals: SelectProposals | None = None
    ) -> ForwardOutput:
        """Runs `forward` on inputs that the framework has preprocessed for its model; an exported model calls this."""

    def fc_layers(self, level: str) -> list[Layers]:
        """Returns each stage's fully connected layers, background last.

        At feature level "pooled" all of them lead from the features to the logits, at "embedding" the last one does.
        Returns [] if the layers are not fully connected or there are no features at this level.
        """

    def state_dict_with_classifiers(self, classifiers: Layers) -> dict[str, torch.Tensor]:
        """Returns the model's state_dict with other classifiers: per stage (K+1, C) weights and (K+1,) biases.

        Background is last. Raises ValueError if the model's classifiers are not linear, or lack a bias that is needed.
        """

    def to_arrays(self, result: Any) -> tuple[ImageDetections, np.ndarray | None]:
        """Converts one item of `ForwardOutput.to_framework` to arrays.

        Masks are (D, H, W) bool at the size of the image, None without a mask head.
        """

    def resized(self, shorter: int, longer: int) -> Detector:
        """Returns a detector with the same weights, shared, that resizes images to these edges."""


def reader_of(detector: Detector) -> ImageReader:
    """Returns the detector's own `read_image`, or `decode_image` if it has none."""
    return getattr(detector, "read_image", decode_image)


def named_classes(detector: Detector) -> OwnClasses | None:
    """Returns `detector.own_classes`; None for an adapter without this attribute."""
    return getattr(detector, "own_classes", None)


def thresholds_of(detector: Detector) -> OwnThresholds | None:
    """Returns `detector.own_thresholds`; None for an adapter without this attribute."""
    return getattr(detector, "own_thresholds", None)
