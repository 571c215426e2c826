"""Mini-LVIS's trained detectors of all frameworks: with the original head, our detections are the framework's own."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import benchmarks.minilvis
from benchmarks.minilvis import make
from benchmarks.minilvis.classes import load_sprites, select
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.minilvis.plan import SPLITS
from benchmarks.minilvis.render import render
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.detectors.base import Detector, Image, ImageDetections
from tests.exactness import assert_same_detections, our_detections

MINILVIS = Path(benchmarks.minilvis.__file__).parent
WEIGHTS = MINILVIS / "weights"
FEW_PROPOSALS = "model.test_cfg.rpn.max_per_img=200"  # mmdetection suppresses class by class, at threshold 0 slowly

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False:UserWarning"),  # of htc.py, for training
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # of mmdetection's cascades
]


@pytest.fixture(scope="module")
def images() -> list[Image]:
    """The first two of Mini-LVIS's val."""
    config = make.Config()
    sprites = load_sprites(select(config.classes))
    drawn = [
        render(plan.objects, sprites, config.size, np.random.default_rng((config.seed, SPLITS.index("val"), i)))
        for i, plan in enumerate(make.plan_split(config, "val")[:2])
    ]
    return [Image(i, one.pixels) for i, one in enumerate(drawn)]


def imported(module: str) -> ModuleType:
    """A framework's tests, which know how its own inference is called; skips where they are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks at import
        return importlib.import_module(module)


def torchvisions(images: list[Image], threshold: float) -> tuple[Detector, list[ImageDetections]]:
    builder, weights = "benchmarks.minilvis.detector:mask_rcnn", WEIGHTS / "plain.safetensors"
    detector = load_detector(DetectorSpec(f"torchvision:{builder}", weights, device="cpu"))
    model = mask_rcnn(box_score_thresh=threshold).eval()
    model.load_state_dict(detector.model.state_dict())
    with torch.no_grad():
        found = model([torch.from_numpy(i.pixels.copy()).permute(2, 0, 1).float() / 255 for i in images])
    return detector, [ImageDetections(f["boxes"].numpy(), f["labels"].numpy() - 1, f["scores"].numpy()) for f in found]


def detectron2s(images: list[Image], threshold: float) -> tuple[Detector, list[ImageDetections]]:
    made = imported("tests.test_detectron2")
    project, file = "benchmarks.minilvis.cascade:register", MINILVIS / "cascade.yaml"
    spec = DetectorSpec(f"detectron2:{project}", WEIGHTS / "cascade.safetensors", file, device="cpu")
    detector = load_detector(spec)
    cfg = made.get_cfg()
    cfg.merge_from_file(str(file))
    predictor = made.DefaultPredictor(cfg)
    predictor.model.load_state_dict(detector.model.state_dict())
    framework = made.Made(spec, predictor).at(threshold)
    return detector, [framework.detections(image) for image in images]


def mmdetections(images: list[Image], threshold: float) -> tuple[Detector, list[ImageDetections]]:
    made = imported("tests.test_mmdet")
    options = {"model.test_cfg.rcnn.score_thr": threshold}
    few = (FEW_PROPOSALS,) if threshold == 0 else ()
    options |= dict((name, int(value)) for name, value in (one.split("=") for one in few))
    spec = DetectorSpec("mmdet", WEIGHTS / "htc.safetensors", MINILVIS / "htc.py", few, device="cpu")
    detector = load_detector(spec)
    model = made.built_by_mmdetection(str(spec.config_file), None, cfg_options=options)
    model.load_state_dict(detector.model.state_dict())
    found = made.inference_detector(model, [np.ascontiguousarray(i.pixels[..., ::-1]) for i in images])
    return detector, [detector.to_arrays(one)[0] for one in found]


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("framework", [torchvisions, detectron2s, mmdetections])
def test_detections_equal_the_frameworks_own(framework, threshold, images):
    detector, expected = framework(images, threshold)
    for rois, theirs in zip(detector.forward(images, "logits").rois, expected, strict=True):
        assert len(theirs.scores) == 300 if threshold == 0 else len(theirs.scores) > 0
        assert theirs.scores[0] > 0.5, "trained"
        assert_same_detections(our_detections(rois, detector, threshold), theirs)
