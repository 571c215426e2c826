"""Calibrated mmdetection detectors. Importing this module registers the model; exported configs import it themselves.

To load an export in the folder `out`:

    model = init_detector("out/model.py", "out/model.pth")
    result = inference_detector(model, image)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcv.transforms import Compose
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import Tensor

from extract.config import DetectorSpec
from extract.detectors.base import Detector
from extract.detectors.class_map import MappedDetector
from extract.detectors.mmdet import MmdetDetector
from extract.detectors.mmdet_config import read_config
from fuse.export.checksums import check_when_loaded
from fuse.plugins import WEIGHTS_FILE, Calibration, plain_calibration

CONFIG = "model.py"
FIRST_LABEL = 0


class _Calibrated(TwoStageDetector):
    """A detector with a calibrated head; for inference only. `CalibratedRCNN` combines it with the detector's class."""

    def __init__(self, calibration: Mapping[str, object], **model_config: Any):
        super().__init__(**model_config)
        self.options = Calibration.from_config(calibration)
        self.calibration = self.options.module()
        check_when_loaded(self, self.options.tensors_sha256)
        self.eval().requires_grad_(False)

    @cached_property
    def adapter(self) -> Detector:
        """The adapter, built at the first inference."""
        # The shallow copy shares all parts and tensors; an adapter of `self` would be a reference cycle.
        resize = {"type": "mmdet.Resize", "scale": (1, 1), "keep_ratio": True}  # not used: inputs are resized already
        return self.options.mapped(MmdetDetector(copy.copy(self), Compose([resize])))

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Detects like `TwoStageDetector.predict`; boxes are in pixels of the original image."""
        if not rescale:
            raise NotImplementedError("a calibrated detector scales its boxes to the image")
        if self.training:
            self.eval()
        inputs = {"inputs": batch_inputs, "data_samples": batch_data_samples}
        output = self.adapter.forward_preprocessed(inputs, range(len(batch_data_samples)), self.options.level)
        return output.to_framework(self.options.detect(self.calibration, output))


@MODELS.register_module()
def CalibratedRCNN(detector: str, **model_config: Any) -> _Calibrated:  # noqa: N802, the type in exported configs
    """Builds the model of an exported config: of a subclass of `detector`, the registered type of the original."""
    base = MODELS.get(detector)
    if base is None:
        raise KeyError(f"{detector} is not in the {MODELS.scope}::{MODELS.name} registry")
    return type("CalibratedRCNN", (_Calibrated, base), {"__module__": __name__})(**model_config)


def config_content(spec: DetectorSpec, options: Calibration, out: Path) -> bytes:
    """Returns the detector's config as one file, with the calibration in it."""
    assert spec.config_file is not None, "the detector has been loaded with it"
    config = read_config(spec.config_file, spec.detector_options)
    config.model.detector = config.model.type
    config.model.type = f"mmdet.{CalibratedRCNN.__name__}"
    config.model.calibration = plain_calibration(options.to_config())
    custom = config.get("custom_imports") or {"imports": [], "allow_failed_imports": False}
    imports = [custom["imports"]] if isinstance(custom["imports"], str) else custom["imports"]
    config.custom_imports = {**custom, "imports": [*imports, __name__]}
    return config.pretty_text.encode()


def loading_code(spec: DetectorSpec, out: Path, device: str) -> str:
    """Returns Python code that loads an export and detects in `image`, a file or (H, W, 3) uint8 BGR."""
    return f"""\
from mmdet.apis import inference_detector, init_detector
model = init_detector({str(out / CONFIG)!r}, {str(out / WEIGHTS_FILE)!r}, device={device!r})
result = inference_detector(model, image)
"""


def checkpoint(state: dict[str, Tensor], detector: Detector, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the content of a checkpoint file of mmengine, with the class names, and the palette of the original."""
    return {"meta": {"dataset_meta": {**dataset_meta(detector), "classes": class_names}}, "state_dict": state}


def dataset_meta(detector: Detector) -> dict[str, Any]:
    """Returns the `dataset_meta` of the detector's own checkpoint."""
    original = detector.original if isinstance(detector, MappedDetector) else detector
    return original.dataset_meta if isinstance(original, MmdetDetector) else {}
