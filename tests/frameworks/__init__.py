"""Tiny random detectors of each framework, and the frameworks' own inference to compare with.

The modules of detectron2 and mmdetection import their framework; a test that needs one calls `import_framework`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from benchmarks.minilvis.detector import mask_rcnn
from extract.config import DetectorSpec
from tests.conftest import CLASSES


def import_framework(name: str) -> ModuleType:
    """Imports `tests.frameworks.NAME`; skips the test if the framework is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks at import
        return importlib.import_module(f"tests.frameworks.{name}")


def torchvision_model() -> nn.Module:
    """A torchvision detector without weights."""
    return mask_rcnn(CLASSES, rpn_post_nms_top_n_test=60)


def torchvision_spec(folder: Path) -> DetectorSpec:
    """Writes weights of `torchvision_model`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision_model()
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    torch.save(model.state_dict(), folder / "weights.pth")
    return DetectorSpec("torchvision:tests.frameworks:torchvision_model", folder / "weights.pth", device="cpu")


def detectron2_spec(kind: str) -> Callable[[Path], DetectorSpec]:
    """Writes weights and config of a kind in `tests.frameworks.detectron2`."""
    return lambda folder: import_framework("detectron2").tiny_spec(kind, folder, CLASSES)


def mmdet_spec(kind: str) -> Callable[[Path], DetectorSpec]:
    """Writes weights and config of a model in `tests.frameworks.mmdet`."""

    def write(folder: Path) -> DetectorSpec:
        module = import_framework("mmdet")
        return module.write_spec(folder, getattr(module, kind)(CLASSES))

    return write


SPECS: dict[str, Callable[[Path], DetectorSpec]] = {
    "torchvision": torchvision_spec,
    "detectron2-cascade": detectron2_spec("cascade"),
    "detectron2-sigmoid": detectron2_spec("sigmoid"),
    "mmdet-mask_rcnn": mmdet_spec("mask_rcnn"),
    "mmdet-hybrid": mmdet_spec("hybrid"),
}
"""Detector → function that writes its files into a folder; for tests that treat all frameworks alike."""


@torch.no_grad()
def standardise(layer: nn.Linear, inputs: tuple[torch.Tensor], outputs: torch.Tensor, deviation: float) -> torch.Tensor:
    """Scales and shifts a layer so that its outputs have mean 0 and this standard deviation over the RoIs; a hook."""
    scale = deviation / outputs.std(0).mean()
    layer.bias.copy_((layer.bias - outputs.mean(0)) * scale)
    layer.weight.mul_(scale)
    return layer.forward(*inputs)
