"""Builds torchvision detectors with the user's function, and refuses those whose inference is not torchvision's."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from extract.config import DetectorSpec
from extract.detectors.base import OwnClasses
from extract.detectors.spec import import_function, parse_options
from extract.detectors.weights import load_weights
from extract.utils.devices import resolve_device
from extract.utils.errors import one_line

INFERENCE_METHODS = ("forward", "postprocess_detections")
"""Methods that the adapter replaces. RoI heads must not override them; methods for training they may."""


def build(target: str, spec: DetectorSpec) -> tuple[GeneralizedRCNN, dict[str, str]]:
    """Calls the builder at MODULE:FUNCTION, loads the weights, and returns the model on its device and their identity.

    Raises ValueError, FileNotFoundError or ImportError naming the part of the spec that is wrong.
    """
    options = parse_options(spec.detector_options)
    builder = import_function(target, "detector builder")
    if spec.weights is None:
        raise ValueError(f"detector torchvision:{target}: give its --weights")
    if spec.config_file is not None:
        raise ValueError(f"config_file {spec.config_file}: torchvision's detectors are built by a function")
    try:
        model = builder(**options)
    except Exception as error:  # builders are code of any kind
        raise ValueError(f"detector builder {target!r} failed with options {options}: {one_line(error)}") from error
    if not isinstance(model, GeneralizedRCNN):
        raise ValueError(f"detector builder {target!r} returned a {type(model).__name__}, expected a GeneralizedRCNN")
    identity = load_weights(model, spec.weights).identity
    return model.to(resolve_device(spec.device)), identity


def own_classes(model: GeneralizedRCNN, k: int) -> OwnClasses | None:
    """Returns the names of the model's k classes: `model.categories`, or COCO's for 90 classes; None for others.

    torchvision's weights have a list of names, background first, as `weights.meta["categories"]`. A builder may give it
    to its model. Output i of torchvision's own detectors is COCO's category i, and ids that COCO does not use are
    outputs as well.
    """
    names, source = getattr(model, "categories", None), "the model's `categories`"
    if names is None:
        names, source = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"], "torchvision's weights for COCO"
    names = tuple(map(str, names))
    names = names[1:] if len(names) == k + 1 else names
    return OwnClasses(names, source, tuple(range(1, k + 1))) if len(names) == k else None


def check(model: GeneralizedRCNN) -> None:
    """Raises ValueError naming RoI heads that override methods of inference, or predict keypoints."""
    heads = model.roi_heads
    cls = type(heads)
    if not isinstance(heads, RoIHeads) or any(getattr(cls, m) is not getattr(RoIHeads, m) for m in INFERENCE_METHODS):
        expected = " and ".join(INFERENCE_METHODS)
        raise ValueError(f"RoI heads are {cls.__name__}, expected RoIHeads with its own {expected}")
    if heads.has_keypoint():
        raise ValueError(f"model is a {type(model).__name__}: it predicts keypoints, which are not supported")
