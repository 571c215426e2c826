"""Mini-LVIS's trained detectors: with the original head, our detections are those of their framework."""

from __future__ import annotations

from pathlib import Path

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
from tests.frameworks import import_framework

MINILVIS = Path(benchmarks.minilvis.__file__).parent
WEIGHTS = MINILVIS / "weights"
FEW_PROPOSALS = "model.test_cfg.rpn.max_per_img=200"  # mmdetection's NMS is slow at score threshold 0

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False:UserWarning"),  # of htc.py, for training
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # of mmdetection's cascades
]


@pytest.fixture(scope="module")
def images() -> list[Image]:
    """The first two images of Mini-LVIS's val split."""
    config = make.Config()
    sprites = load_sprites(select(config.classes))
    drawn = [
        render(plan.objects, sprites, config.size, np.random.default_rng((config.seed, SPLITS.index("val"), i)))
        for i, plan in enumerate(make.plan_split(config, "val")[:2])
    ]
    return [Image(i, one.pixels) for i, one in enumerate(drawn)]


def run_torchvision(images: list[Image], threshold: float) -> tuple[Detector, list[ImageDetections]]:
    builder, weights = "benchmarks.minilvis.detector:mask_rcnn", WEIGHTS / "plain.safetensors"
    detector = load_detector(DetectorSpec(f"torchvision:{builder}", weights, device="cpu"))
    model = mask_rcnn(box_score_thresh=threshold).eval()
    model.load_state_dict(detector.model.state_dict())
    with torch.no_grad():
        results = model([torch.from_numpy(i.pixels.copy()).permute(2, 0, 1).float() / 255 for i in images])
    return detector, [detector.to_arrays(result)[0] for result in results]


def run_detectron2(images: list[Image], threshold: float) -> tuple[Detector, list[ImageDetections]]:
    framework = import_framework("detectron2")
    project, file = "benchmarks.minilvis.cascade:register", MINILVIS / "cascade.yaml"
    spec = DetectorSpec(f"detectron2:{project}", WEIGHTS / "cascade.safetensors", file, device="cpu")
    detector = load_detector(spec)
    cfg = framework.get_cfg()
    cfg.merge_from_file(str(file))
    predictor = framework.DefaultPredictor(cfg)
    predictor.model.load_state_dict(detector.model.state_dict())
    reference = framework.Reference(spec, predictor).with_threshold(threshold)
    return detector, [reference.detections(image) for image in images]


def run_mmdet(images: list[Image], threshold: float) -> tuple[Detector, list[ImageDetections]]:
    framework = import_framework("mmdet")
    options = {"model.test_cfg.rcnn.score_thr": threshold}
    few = (FEW_PROPOSALS,) if threshold == 0 else ()
    options |= dict((name, int(value)) for name, value in (one.split("=") for one in few))
    spec = DetectorSpec("mmdet", WEIGHTS / "htc.safetensors", MINILVIS / "htc.py", few, device="cpu")
    detector = load_detector(spec)
    model = framework.init_model(str(spec.config_file), None, cfg_options=options)
    model.load_state_dict(detector.model.state_dict())
    return detector, [detector.to_arrays(result)[0] for result in framework.infer(model, images)]


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("run", [run_torchvision, run_detectron2, run_mmdet])
def test_detections_equal_the_frameworks(run, threshold, images):
    detector, expected = run(images, threshold)
    for rois, theirs in zip(detector.forward(images, "logits").rois, expected, strict=True):
        assert len(theirs.scores) == 300 if threshold == 0 else len(theirs.scores) > 0
        assert theirs.scores[0] > 0.5, "trained"
        assert_same_detections(our_detections(rois, detector, threshold), theirs)
