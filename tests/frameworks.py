"""One tiny random detector of each framework and kind, for the tests that treat all alike: name → its spec."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from benchmarks.minilvis.detector import mask_rcnn
from extract.config import DetectorSpec
from tests.conftest import CLASSES

TINY = {"MODEL.ROI_HEADS.NUM_CLASSES": CLASSES, "INPUT.MIN_SIZE_TEST": 112, "INPUT.MAX_SIZE_TEST": 168}


def torchvision_model() -> nn.Module:
    """Without weights."""
    return mask_rcnn(CLASSES, rpn_post_nms_top_n_test=60)


def torchvision_spec(folder: Path) -> DetectorSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision_model()
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    torch.save(model.state_dict(), folder / "weights.pth")
    return DetectorSpec("torchvision:tests.frameworks:torchvision_model", folder / "weights.pth", device="cpu")


def detectron2_spec(kind: str) -> Callable[[Path], DetectorSpec]:
    def make(folder: Path) -> DetectorSpec:
        made = _imported("tests.test_detectron2")
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        cfg = get_cfg()
        options = made.SMALL | made.AGNOSTIC | KINDS[kind] | TINY
        cfg.merge_from_list([part for pair in options.items() for part in pair])
        weights = made.save_weights(lambda: build_model(cfg), folder)
        (folder / "tiny.yaml").write_text(cfg.dump())
        return DetectorSpec("detectron2", weights, folder / "tiny.yaml", device="cpu")

    return make


def mmdet_spec(kind: str) -> Callable[[Path], DetectorSpec]:
    def make(folder: Path) -> DetectorSpec:
        made = _imported("tests.test_mmdet")
        return made.make_detector(folder, getattr(made, kind)(CLASSES))

    return make


def _imported(module: str) -> ModuleType:
    """A framework's tests, with what they build; where they are skipped, so is the test that asks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks at import
        return import_module(module)


KINDS = {
    "cascade": {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"},
    "sigmoid": {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True},
}
SPECS = {
    "torchvision": torchvision_spec,
    "detectron2-cascade": detectron2_spec("cascade"),
    "detectron2-sigmoid": detectron2_spec("sigmoid"),
    "mmdet-mask_rcnn": mmdet_spec("mask_rcnn"),
    "mmdet-hybrid": mmdet_spec("hybrid"),
}
