"""Calibrated detectron2 detectors: importing this module registers the meta-architecture and its config keys.

How to load what `python -m fuse export` has written to `out`:

    import fuse.plugins.detectron2
    cfg = get_cfg()
    cfg.merge_from_file("out/model.yaml")
    outputs = DefaultPredictor(cfg)(image)
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.config.defaults import _C as DEFAULTS
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from torch import Tensor

from extract.config import DetectorSpec
from extract.detectors.detectron2 import Detectron2Detector
from extract.detectors.detectron2_config import project, read_yaml
from fuse.plugins import Calibration

CONFIG = "model.yaml"


def _node(options: Calibration) -> CfgNode:
    return CfgNode({key.upper(): value for key, value in asdict(options).items()})


_EXAMPLE = Calibration((0, 0), 1, "pooled", "cat", "softmax", "scores", "scores", 0.05, 0.0, 0.0, 0.5, 300, False)
# Keys of a config must be known before a file is merged into it: this is the one import that makes them known.
DEFAULTS.MODEL.CALIBRATION = _node(_EXAMPLE)


class _Calibrated(GeneralizedRCNN):
    """A detectron2 detector with a calibrated head; for inference only."""

    def calibrate(self, options: Calibration, image_format: str) -> None:
        """Adds the head, without weights."""
        self.options, self.calibration = options, options.module().to(self.device)
        self.image_format = image_format
        self.eval().requires_grad_(False)

    def inference(self, batched_inputs: list[dict], detected_instances: None = None, do_postprocess: bool = True):
        """As `GeneralizedRCNN.inference`, whose other two arguments are for training and test-time augmentation."""
        if detected_instances is not None or not do_postprocess:
            raise NotImplementedError("a calibrated detector finds its own boxes and scales them to the image")
        model = copy.copy(self)
        model.__class__ = GeneralizedRCNN  # the same parts, whose own inference the adapter takes apart
        detector = Detectron2Detector(model, ResizeShortestEdge([1, 1], 1), self.image_format)
        results = []
        for i, one in enumerate(batched_inputs):
            forward = detector.forward_preprocessed([one], [i], self.options.level)
            results += forward.to_framework(self.options.detect(self.calibration, forward))
        return results


@META_ARCH_REGISTRY.register()
def CalibratedRCNN(cfg: CfgNode) -> _Calibrated:  # noqa: N802, configs name it like a class
    """The model of a config that `python -m fuse export` has written."""
    options = Calibration(**{key.lower(): value for key, value in cfg.MODEL.CALIBRATION.items()})
    original = cfg.clone()
    original.defrost()
    original.MODEL.META_ARCHITECTURE = GeneralizedRCNN.__name__
    model = build_model(original)
    model.__class__ = _Calibrated
    model.calibrate(options, cfg.INPUT.FORMAT)
    return model


def config_content(spec: DetectorSpec, options: Calibration, out: Path) -> bytes:
    """The detector's config with the calibration in it, for a checkpoint in the folder `out`.

    Raises ValueError for a LazyConfig, which cannot be written down again.
    """
    if spec.config_file.suffix == ".py":
        raise ValueError(f"{spec.config_file}: is a LazyConfig; a calibrated detector is written as .yaml only")
    cfg = read_yaml(spec, project(spec.detector.partition(":")[2]))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = CalibratedRCNN.__name__, str(out / "model.pth")
    cfg.MODEL.CALIBRATION = _node(options)
    return cfg.dump().encode()


def checkpoint(state: dict[str, Tensor]) -> dict:
    """As detectron2's checkpointers write it."""
    return {"model": state}
