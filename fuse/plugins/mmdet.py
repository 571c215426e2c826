"""Calibrated mmdetection detectors: importing this module registers the model; exported configs import it themselves.

How to load what `python -m fuse export` has written to `out`:

    model = init_detector("out/model.py", "out/model.pth")
    result = inference_detector(model, image)
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

from mmcv.transforms import Compose
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import Tensor

from extract.config import DetectorSpec
from extract.detectors.mmdet import MmdetDetector
from extract.detectors.mmdet_config import read_config
from fuse.plugins import Calibration

CONFIG = "model.py"


class _Calibrated:
    """What a calibrated model does otherwise than the detector it is made of; for inference only."""

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """As `TwoStageDetector.predict`; boxes are of the original image."""
        if not rescale:
            raise NotImplementedError("a calibrated detector scales its boxes to the image")
        model = copy.copy(self)
        model.__class__ = type(self).__mro__[2]  # the same parts, whose own inference the adapter takes apart
        packed = {"inputs": batch_inputs, "data_samples": batch_data_samples}
        resize = Compose([{"type": "mmdet.Resize", "scale": (1, 1), "keep_ratio": True}])  # the inputs are resized
        detector = MmdetDetector(model, resize)
        forward = detector.forward_preprocessed(packed, range(len(batch_data_samples)), self.options.level)
        return forward.to_framework(self.options.detect(self.calibration, forward))


@MODELS.register_module()
def CalibratedRCNN(detector: str, calibration: dict, **kwargs) -> TwoStageDetector:  # noqa: N802, as configs name it
    """The model of a config that `python -m fuse export` has written; `detector` is the type that `kwargs` are for."""
    model = MODELS.build({"type": detector, **kwargs})
    model.options = Calibration(**calibration)
    model.calibration = model.options.module()
    model.__class__ = type("CalibratedRCNN", (_Calibrated, type(model)), {})
    return model.eval().requires_grad_(False)


def config_content(spec: DetectorSpec, options: Calibration, out: Path) -> bytes:
    """The detector's config, whole in one file, with the calibration in it."""
    config = read_config(spec.config_file, spec.detector_options)
    config.model.detector = config.model.type
    config.model.type, config.model.calibration = f"mmdet.{CalibratedRCNN.__name__}", asdict(options)
    custom = config.get("custom_imports") or {"imports": [], "allow_failed_imports": False}
    imports = [custom["imports"]] if isinstance(custom["imports"], str) else custom["imports"]
    config.custom_imports = {**custom, "imports": [*imports, __name__]}
    return config.pretty_text.encode()


def checkpoint(state: dict[str, Tensor]) -> dict:
    """As mmengine's checkpoints are."""
    return {"meta": {}, "state_dict": state}
