"""Calibrated torchvision detectors.

To load an export in the folder `out`:

    from fuse.plugins.torchvision import calibrated
    model = calibrated(my_models.build(), "out")
    detections = model(images)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from extract.config import DetectorSpec
from extract.detectors.base import Detector
from extract.detectors.spec import parse_options
from extract.detectors.torchvision import TorchvisionDetector
from extract.utils.errors import one_line
from fuse.export.checksums import check_sums, check_when_loaded
from fuse.plugins import WEIGHTS_FILE, Calibration

CONFIG = "calibration.json"
FIRST_LABEL = 1
MAX_REASON = 300
"""Characters of torch's error that a message repeats."""


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
        check_when_loaded(self, self.options.tensors_sha256)
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


def loading_code(spec: DetectorSpec, out: Path, device: str) -> str:
    """Returns Python code that loads an export and detects in `image`, (3, H, W) float, 0 to 1."""
    module, _, builder = spec.detector.partition(":")[2].partition(":")
    arguments = ", ".join(f"{name}={value!r}" for name, value in parse_options(spec.detector_options).items())
    return f"""\
from {module} import {builder}
from fuse.plugins.torchvision import calibrated
model = calibrated({builder}({arguments}), {str(out)!r}).to({device!r})
(detections,) = model([image.to({device!r})])
"""


def calibrated(model: GeneralizedRCNN, folder: str | Path) -> CalibratedRCNN:
    """Loads an export of `python -m fuse export`.

    Args:
        model: as the builder of the original returns it; gets the weights of the export.
        folder: of the export.

    Raises FileNotFoundError, or ValueError naming the file that is damaged or of another model.
    """
    path, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS_FILE
    for file in (path, weights):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; `python -m fuse export` writes it")
    check_sums(Path(folder))
    try:
        calibration = Calibration.from_config(msgspec.json.decode(path.read_bytes(), type=dict))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON object: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    loaded = CalibratedRCNN(model, calibration)
    try:
        loaded.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # of many types: a damaged file, a model of another builder
        raise ValueError(f"{weights}: not the weights of this model: {one_line(error)[:MAX_REASON]}") from None
    return loaded
