"""Calibrated models as modules of their framework: parts, devices, copies and memory."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from extract.detectors import load_detector
from fuse.plugins import Calibration, CalibrationConfig
from tests import frameworks
from tests.conftest import CLASSES
from tests.exactness import make_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # mmdetection's masks
]


def make_calibration(stages: int) -> Calibration:
    """A method without training, which needs no features."""
    config = CalibrationConfig(
        widths=(CLASSES + 1,),
        stages=stages,
        level="logits",
        mode="cat",
        activation="softmax",
        original_average="scores",
        calibrated_average="scores",
        threshold=0.05,
        scale=0.0,
        score_threshold=0.0,
        iou_threshold=0.5,
        max_detections=20,
        skip_empty=False,
    )
    return Calibration.from_config(vars(config))


def build(name: str, folder: Path) -> tuple[nn.Module, nn.Module, Callable[[nn.Module], object]]:
    """Returns the original model, the calibrated one with random weights, and the framework's call of it."""
    spec = frameworks.SPECS[name](folder)
    original = load_detector(spec)
    calibration = make_calibration(len(original.stages))
    pixels = make_images((96, 144))[0].pixels
    if name == "torchvision":
        from fuse.plugins.torchvision import CalibratedRCNN

        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return original.model, CalibratedRCNN(frameworks.torchvision_model(), calibration), lambda m: m([tensor])
    if name.startswith("detectron2"):
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        import fuse.plugins.detectron2 as plugin

        (folder / "model.yaml").write_bytes(plugin.config_content(spec, calibration, folder))
        cfg = get_cfg()
        cfg.merge_from_file(str(folder / "model.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        inputs = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
        return original.model, build_model(cfg), lambda m: m([inputs])
    import fuse.plugins.mmdet as plugin

    (folder / "model.py").write_bytes(plugin.config_content(spec, calibration, folder))
    module = frameworks.import_framework("mmdet")
    return (
        original.model,
        module.init_model(str(folder / "model.py")),
        lambda m: module.infer(m, make_images((96, 144))),
    )


@pytest.mark.parametrize("name", ["torchvision", "detectron2-cascade", "mmdet-hybrid"])
def test_a_calibrated_model_is_an_ordinary_module(name, tmp_path, monkeypatch):
    original, model, run = build(name, tmp_path)
    expected = {*original.state_dict(), *(f"calibration.{key}" for key in model.calibration.state_dict())}
    assert set(model.state_dict()) == expected and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    run(model)
    adapter = model.adapter
    run(model)
    assert model.adapter is adapter, "built once"
    assert set(model.state_dict()) == expected, "the adapter is not part of the model"
    copied = copy.deepcopy(model)
    assert copied.adapter.model.backbone is copied.backbone is not model.backbone
    copied.to("meta")
    assert copied.adapter.device.type == "meta" and adapter.device.type == "cpu"
    reference = weakref.ref(copied)
    gc.disable()
    try:
        del copied
        assert reference() is None, "no reference cycle keeps a model in memory"
    finally:
        gc.enable()


def test_torchvision_files_that_are_not_json(tmp_path):
    from fuse.plugins.torchvision import calibrated

    for content, message in ((b"{", "not a JSON object"), (b"[]", "not a JSON object"), (b"{}", "not the description")):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"bad.json: {message}"):
            calibrated(frameworks.torchvision_model(), tmp_path / "bad.json")
