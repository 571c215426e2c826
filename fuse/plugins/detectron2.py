"""Calibrated detectron2 detectors. Importing this module registers the meta-architecture and its config keys.

To load an export in the folder `out`:

    import fuse.plugins.detectron2
    cfg = get_cfg()
    cfg.merge_from_file("out/model.yaml")
    outputs = DefaultPredictor(cfg)(image)

or, if the detector's config was a LazyConfig:

    cfg = LazyConfig.load("out/model.yaml")
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.config.defaults import _C as DEFAULTS
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor

from extract.config import DetectorSpec
from extract.detectors.base import Detector
from extract.detectors.detectron2 import Detectron2Detector
from extract.detectors.detectron2_config import project_function, read_yaml
from fuse.config import FusionConfig
from fuse.defaults import IOU_THRESHOLD
from fuse.export.checksums import check_when_loaded
from fuse.plugins import WEIGHTS_FILE, Calibration, CalibrationConfig, plain_calibration
from fuse.plugins.detectron2_lazy import plain_config, plain_values, to_yaml

CONFIG = "model.yaml"
FIRST_LABEL = 0


def _to_node(config: CalibrationConfig) -> CfgNode:
    return CfgNode({key.upper(): value for key, value in plain_calibration(config).items()})


# get_cfg() must define a key before a file with it can be merged; the values only set the types.
DEFAULTS.MODEL.CALIBRATION = _to_node(
    Calibration(
        widths=(0, 0),
        stages=1,
        level="pooled",
        activation="softmax",
        original_average="scores",
        calibrated_average="scores",
        fusion=FusionConfig(iou_threshold=IOU_THRESHOLD, skip_empty=False),
    ).to_config()
)


@META_ARCH_REGISTRY.register()
class CalibratedRCNN(GeneralizedRCNN):
    """A detectron2 detector with a calibrated head, of the config in an export; for inference only."""

    def __init__(self, cfg: CfgNode | None = None, *, calibration: Mapping[str, Any] | None = None, **parts: Any):
        """Builds it from a config, or as a LazyConfig does, from its calibration and the parts of the original."""
        if cfg is None:
            super().__init__(**parts)
            values = plain_values(calibration or {})
        else:
            super().__init__(cfg)
            values = {key.lower(): value for key, value in cfg.MODEL.CALIBRATION.items()}
        self.options = Calibration.from_config(values)
        self.calibration = self.options.module()
        _name_classes(() if cfg is None else cfg.DATASETS.TEST, self.options.class_names)
        check_when_loaded(self, self.options.tensors_sha256)
        self.eval().requires_grad_(False)

    @cached_property
    def adapter(self) -> Detector:
        """The adapter, built at the first inference because it probes the loaded weights."""
        # The shallow copy shares all parts and tensors; an adapter of `self` would be a reference cycle.
        resize = ResizeShortestEdge([1, 1], 1)  # not used: inputs are resized already
        return self.options.mapped(Detectron2Detector(copy.copy(self), resize, self.input_format))

    def inference(
        self, batched_inputs: list[dict[str, Any]], detected_instances: None = None, do_postprocess: bool = True
    ) -> list[dict[str, Instances]]:
        """Detects like `GeneralizedRCNN.inference`; takes no boxes, and always scales its own to the image."""
        if detected_instances is not None or not do_postprocess:
            raise NotImplementedError("a calibrated detector predicts its own boxes and scales them to the image")
        results = []
        for i, one in enumerate(batched_inputs):
            output = self.adapter.forward_preprocessed([one], [i], self.options.level)
            results += output.to_framework(self.options.detect(self.calibration, output))
        return results


def check_config(spec: DetectorSpec) -> None:
    """Raises ValueError naming the field of a LazyConfig that cannot be written to a file."""
    if spec.config_file is not None and spec.config_file.suffix == ".py" and spec.config_file.is_file():
        plain_config(spec)


def config_content(spec: DetectorSpec, options: Calibration, out: Path) -> bytes:
    """Returns the detector's config with the calibration in it, for a checkpoint in the folder `out`.

    Raises ValueError as `check_config`.
    """
    assert spec.config_file is not None, "the detector has been loaded with it"
    if spec.config_file.suffix == ".py":
        config = plain_config(spec)
        calibration = plain_calibration(options.to_config())
        target = f"{__name__}.{CalibratedRCNN.__name__}"
        config["model"] = {**config["model"], "_target_": target, "calibration": calibration}
        return to_yaml({**config, "train": {"init_checkpoint": str(out / WEIGHTS_FILE)}})
    cfg = read_yaml(spec, project_function(spec.detector.partition(":")[2]))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = CalibratedRCNN.__name__, str(out / WEIGHTS_FILE)
    cfg.MODEL.CALIBRATION = _to_node(options.to_config())
    if options.class_names and not _has_names(cfg.DATASETS.TEST, options.class_names):
        cfg.DATASETS.TEST = (f"{out.name}-{hashlib.sha256(repr(options.class_names).encode()).hexdigest()[:8]}",)
    return cfg.dump().encode()


def loading_code(spec: DetectorSpec, out: Path, device: str) -> str:
    """Returns Python code that loads an export and detects in `image`.

    A pixel array (H, W, 3) uint8, BGR or in the config's format.
    """
    module, _, function = spec.detector.partition(":")[2].partition(":")
    if spec.config_file is not None and spec.config_file.suffix == ".py":
        project = f"import {module}\n" if module else ""
        return f"""\
import torch
import fuse.plugins.detectron2
{project}from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
cfg = LazyConfig.load({str(out / CONFIG)!r})
model = instantiate(cfg.model).to({device!r})
DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
(resize,) = instantiate(cfg.dataloader.test.mapper.augmentations)
resized = torch.from_numpy(resize.get_transform(image).apply_image(image).transpose(2, 0, 1).copy())
(outputs,) = model([{{"image": resized, "height": image.shape[0], "width": image.shape[1]}}])
"""
    project = f"from {module} import {function}\n{function}(cfg)\n" if module else ""
    return f"""\
import fuse.plugins.detectron2
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
cfg = get_cfg()
{project}cfg.merge_from_file({str(out / CONFIG)!r})
cfg.MODEL.DEVICE = {device!r}
predictor = DefaultPredictor(cfg)
outputs = predictor(image)
"""


def checkpoint(state: dict[str, Tensor], detector: Detector, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the content of a checkpoint file of detectron2, whose catalog has the class names."""
    return {"model": state}


def _has_names(datasets: Sequence[str], class_names: tuple[str, ...]) -> bool:
    """Returns whether the catalog has these names for the first dataset, whose names detectron2 shows."""
    if not datasets or datasets[0] not in MetadataCatalog.list():
        return False
    return tuple(MetadataCatalog.get(datasets[0]).get("thing_classes") or ()) == class_names


def _name_classes(datasets: Sequence[str], class_names: tuple[str, ...]) -> None:
    """Gives the catalog the names of the first dataset, unless it has some."""
    if datasets and class_names and MetadataCatalog.get(datasets[0]).get("thing_classes") is None:
        MetadataCatalog.get(datasets[0]).thing_classes = list(class_names)
