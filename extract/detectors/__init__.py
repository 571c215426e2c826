"""Trained two-stage detectors behind one interface. Each framework is imported by its own module only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np

from extract.config import DetectorSpec
from extract.extras import require
from extract.layout import Layers
from extract.rois import RoIs

FRAMEWORKS = ("torchvision",)

Choose = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(position in the batch, proposals (P, 4) best first) → (indices of the proposals to keep, boxes (G, 4) to add)."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image and its id; pixels (H, W, 3) uint8 RGB."""

    image_id: int
    pixels: np.ndarray


class Detector(Protocol):
    """A frozen two-stage detector.

    Attributes:
        num_classes: K, without background.
        stages: matching IoU of each stage of its box head.
        description: what a cache says of it: name, framework, weights_sha256, stage_average, nms_iou …;
            plain JSON values.
        has_masks: whether it predicts class-agnostic masks.
    """

    num_classes: int
    stages: tuple[float, ...]
    description: dict
    has_masks: bool

    def rois(self, images: Sequence[Image], choose: Choose, level: str, masks: bool) -> list[RoIs]:
        """One forward pass over a batch.

        Proposals are those that `choose` keeps, in its order, then the boxes that it adds (`is_gt`, objectness 1).
        Boxes are in pixels of the given images. Labels are left unknown. `masks` asks for the class-agnostic mask
        of every refined box.
        """

    def head(self, level: str) -> list[Layers]:
        """Per stage the layers that lead from the features of a level to the logits, background last; [] if
        they are not fully connected or the level stores no features."""


def load_detector(spec: DetectorSpec) -> Detector:
    """Builds the detector and loads its weights.

    Raises ValueError naming the spec's part that is wrong, FileNotFoundError, or ImportError with the package to
    install.
    """
    framework, _, target = spec.detector.partition(":")
    if framework not in FRAMEWORKS:
        raise ValueError(
            f"detector {spec.detector!r}: framework {framework!r}, expected {', '.join(FRAMEWORKS)}, "
            "as in torchvision:my_models:build"
        )
    require(framework, extra=framework)
    return import_module(f"extract.detectors.{framework}").load(target, spec)


def parse_options(options: Sequence[str]) -> dict:
    """KEY=VALUE pairs as builder arguments; values are JSON where they parse as such, else text."""
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"detector option {option!r}, expected KEY=VALUE")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed


def import_builder(target: str) -> Callable:
    """The function at MODULE:NAME. Raises ValueError or ImportError naming the part that is missing."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"detector builder {target!r}, expected MODULE:BUILDER")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # console scripts, unlike `python -m`, do not look there
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"detector builder {target!r}: {error} in {os.getcwd()} or on PYTHONPATH") from error
    if not callable(getattr(found, name, None)):
        raise ValueError(f"detector builder {target!r}: module {module} has no function {name}")
    return getattr(found, name)
