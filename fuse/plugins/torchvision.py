"""Calibrated torchvision detectors.

To load an export in the folder `out`:

    from fuse.plugins.torchvision import calibrated
    model = calibrated(my_models.build(), "out/calibration.json")
    model.load_state_dict(torch.load("out/model.pth", weights_only=True))
    detections = model(images)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from extract.config import DetectorSpec
from extract.detectors.base import Detector
from extract.detectors.torchvision import TorchvisionDetector
from fuse.plugins import Calibration

CONFIG = "calibration.json"
FIRST_LABEL = 1


class CalibratedRCNN(GeneralizedRCNN):
    """A torchvision detector with a calibrated head; for inference only.

    Attributes:
        categories: names of its labels, background first, as in `weights.meta["categories"]` of torchvision; None in
            older exports.
    """

    def __init__(self, model: GeneralizedRCNN, options: Calibration):
        super().__init__(model.backbone, model.rpn, model.roi_heads, model.transform)
        self.options, self.calibration = options, options.module()
        self.categories = ["__background__", *options.class_names] if options.class_names else None
        self.eval().requires_grad_(False)

    @cached_property
    def adapter(self) -> Detector:
        """The adapter, built at the first inference because it probes the loaded weights."""
        # The shallow copy shares all parts and tensors; an adapter of `self` would be a reference cycle.
        return self.options.mapped(TorchvisionDetector(copy.copy(self)))

    def forward(self, images: Sequence[Tensor], targets: None = None) -> list[dict[str, Tensor]]:
        """Returns dicts of boxes, labels, scores and masks for images (3, H, W) float, 0 to 1, like torchvision."""
        if self.training:
            self.eval()
        results = []
        for i, image in enumerate(images):
            output = self.adapter.forward_preprocessed([image], [i], self.options.level)
            results += output.to_framework(self.options.detect(self.calibration, output))
        return results


def config_content(spec: DetectorSpec, options: Calibration, out: Path) -> bytes:
    """Returns the file that `calibrated` reads."""
    return msgspec.json.format(msgspec.json.encode(options.to_config()))


def checkpoint(state: dict[str, Tensor], detector: Detector, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the content of a checkpoint file, the state_dict itself, which has no place for class names."""
    return state


def calibrated(model: GeneralizedRCNN, options: str | Path) -> CalibratedRCNN:
    """Adds the calibration, without weights, that a JSON file of `python -m fuse export` describes.

    Raises FileNotFoundError, or ValueError naming the file.
    """
    path = Path(options)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `python -m fuse export` writes it")
    try:
        calibration = Calibration.from_config(msgspec.json.decode(path.read_bytes(), type=dict))
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: not a JSON object: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return CalibratedRCNN(model, calibration)
