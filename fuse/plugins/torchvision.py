"""Calibrated torchvision detectors.

How to load what `python -m fuse export` has written to `out`:

    from fuse.plugins.torchvision import calibrated
    model = calibrated(my_models.build(), "out/calibration.json")
    model.load_state_dict(torch.load("out/model.pth", weights_only=True))
    detections = model(images)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from extract.config import DetectorSpec
from extract.detectors.torchvision import TorchvisionDetector
from fuse.plugins import Calibration

CONFIG = "calibration.json"


class CalibratedRCNN(GeneralizedRCNN):
    """A torchvision detector with a calibrated head; for inference only."""

    def __init__(self, model: GeneralizedRCNN, options: Calibration):
        super().__init__(model.backbone, model.rpn, model.roi_heads, model.transform)
        self.options, self.calibration = options, options.module()
        self.eval().requires_grad_(False)

    def forward(self, images: Sequence[Tensor], targets: None = None) -> list[dict[str, Tensor]]:
        """Images (3, H, W) float from 0 to 1 → dicts of boxes, labels, scores and masks, as torchvision's own."""
        detector = TorchvisionDetector(self)
        passes = [detector.forward_preprocessed([image], [i], self.options.level) for i, image in enumerate(images)]
        return [one.to_framework(self.options.detect(self.calibration, one))[0] for one in passes]


def config_content(spec: DetectorSpec, options: Calibration, out: Path) -> bytes:
    """What `calibrated` reads."""
    return msgspec.json.format(msgspec.json.encode(options))


def checkpoint(state: dict[str, Tensor]) -> dict:
    """What `torch.save` is to write: the state_dict itself."""
    return state


def calibrated(model: GeneralizedRCNN, options: str | Path) -> CalibratedRCNN:
    """The model with a calibration, without weights, as `python -m fuse export` has described it in a JSON file.

    Raises FileNotFoundError, or ValueError naming the file.
    """
    path = Path(options)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `python -m fuse export` writes it")
    try:
        return CalibratedRCNN(model, msgspec.json.decode(path.read_bytes(), type=Calibration))
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: not the description of a calibration: {error}") from None
