"""The torchvision adapter: with the original head, our detections are torchvision's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads

import tests.detectors as builders
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.detectors.base import ImageDetections
from extract.detectors.torchvision import TorchvisionDetector
from tests.exactness import assert_same_detections, make_images, our_detections


def mini_lvis() -> nn.Module:
    from benchmarks.minilvis.detector import mask_rcnn

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = mask_rcnn(builders.CLASSES, rpn_post_nms_top_n_test=80)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
        return model


def collapsing() -> nn.Module:
    """Wild regression: many refined boxes lose their area at the edge of the image."""
    model = builders.mask_rcnn()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.5)
    return model


MODELS = {
    "collapsing boxes": collapsing,
    "class-specific, resized": builders.mask_rcnn,
    "one level, no masks": builders.single_level,
    "class-agnostic": mini_lvis,
}


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("name", MODELS)
def test_detections_equal_torchvisions_own(name, threshold):
    model = MODELS[name]()
    model.roi_heads.score_thresh = threshold
    detector = TorchvisionDetector(model)
    images = make_images((96, 144), (144, 96))
    with torch.inference_mode():
        expected = model([torch.from_numpy(i.pixels).permute(2, 0, 1).float() / 255 for i in images])
    for rois, reference in zip(detector.forward(images, "logits").rois, expected, strict=True):
        ours = our_detections(rois, detector, threshold)
        theirs = ImageDetections(
            reference["boxes"].numpy(), reference["labels"].numpy() - 1, reference["scores"].numpy()
        )
        assert len(theirs.scores) > 20
        assert_same_detections(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_results_are_torchvisions_own(name):
    model = MODELS[name]()
    model.roi_heads.score_thresh = 0.05
    detector = TorchvisionDetector(model)
    images = make_images((96, 144), (96, 144))
    forward = detector.forward(images, "logits")
    results = forward.to_framework([our_detections(rois, detector, 0.05) for rois in forward.rois])
    with torch.inference_mode():
        expected = model([torch.from_numpy(i.pixels).permute(2, 0, 1).float() / 255 for i in images])
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], atol=5e-3, rtol=0)
    results[0]["boxes"] *= 2  # users edit results in place


def test_resized_shares_the_weights_and_sees_other_sizes():
    detector = TorchvisionDetector(builders.mask_rcnn())
    other = detector.resized(160, 300)
    assert other.model.backbone is detector.model.backbone and detector.size == (120, 200) and other.size == (160, 300)
    model = builders.mask_rcnn(min_size=160, max_size=300)
    (image,) = make_images((96, 144))
    (rois,) = other.forward([image], "logits").rois
    (expected,) = TorchvisionDetector(model).forward([image], "logits").rois
    np.testing.assert_allclose(rois.boxes, expected.boxes, atol=1e-3)
    assert not np.allclose(rois.boxes[:20], detector.forward([image], "logits").rois[0].boxes[:20], atol=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_features_lead_to_the_logits(name):
    detector = TorchvisionDetector(MODELS[name]())
    for level in ("pooled", "embedding"):
        (rois,) = detector.forward(make_images((96, 96)), level).rois
        (layers,) = detector.fc_layers(level)
        x = rois.features[:, 0].float().flatten(1)
        for depth, (weight, bias) in enumerate(layers if level == "pooled" else layers[-1:]):
            x = torch.relu(x) if depth else x
            x = x @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        np.testing.assert_allclose(x, rois.logits[:, 0], atol=0.01 * np.abs(rois.logits).max())
    assert detector.fc_layers("logits") == []


def test_added_boxes_come_last_and_go_through_the_head():
    detector = TorchvisionDetector(builders.mask_rcnn())
    extra = np.float32([[10, 20, 60, 70]])
    (rois,) = detector.forward(make_images((96, 144)), "pooled", lambda i, p: (np.arange(3)[::-1], extra)).rois
    (plain,) = detector.forward(make_images((96, 144)), "pooled").rois
    assert rois.is_gt.tolist() == [False, False, False, True] and rois.objectness[3] == 1
    np.testing.assert_allclose(rois.proposals[3, 0], extra[0], atol=1e-4)
    np.testing.assert_allclose(rois.logits[:3], plain.logits[:3][::-1], atol=1e-4)
    assert (np.diff(plain.objectness) <= 0).all(), "best first"


def test_no_proposals_at_all():
    detector = TorchvisionDetector(builders.mask_rcnn())
    nothing = lambda i, p: (np.empty(0, int), np.empty((0, 4), np.float32))  # noqa: E731
    (rois,) = detector.forward(make_images((96, 96)), "pooled", nothing).rois
    assert len(rois) == 0 and rois.boxes.shape == (0, builders.CLASSES, 4)


def test_masks_are_those_of_the_model():
    model = mini_lvis()
    detector = TorchvisionDetector(model)
    assert detector.has_masks and not TorchvisionDetector(builders.mask_rcnn()).has_masks
    images = make_images((144, 144), (144, 144))  # a size that the model does not change
    forward = detector.forward(images, "logits")
    rois, masks = forward.rois[1], forward.masks()[1]
    with torch.inference_mode():
        features = model.backbone(model.transform([detector.to_tensor(i) for i in images])[0].tensors)
        boxes = [torch.zeros(0, 4), torch.from_numpy(rois.boxes)]
        pooled = model.roi_heads.mask_roi_pool(features, boxes, [(144, 144)] * 2)
        expected = model.roi_heads.mask_predictor(model.roi_heads.mask_head(pooled))[:, 3].sigmoid()
    np.testing.assert_allclose(masks / 255, expected, atol=0.5 / 255 + 1e-5)


def test_class_specific_boxes_keep_no_masks():
    model = mini_lvis()
    predictor = model.roi_heads.box_predictor
    model.roi_heads.box_predictor = nn.ModuleDict({"cls": predictor.cls_score, "box": nn.Linear(256, 4 * 8)})
    model.roi_heads.box_predictor.forward = lambda x: (predictor.cls_score(x), model.roi_heads.box_predictor["box"](x))
    detector = TorchvisionDetector(model)
    assert not detector.class_agnostic_boxes and not detector.has_masks


def test_a_classifier_without_bias():
    model = builders.single_level()
    old = model.roi_heads.box_predictor.cls_score
    model.roi_heads.box_predictor.cls_score = nn.Linear(old.in_features, old.out_features, bias=False)
    ((*_, (weight, bias)),) = TorchvisionDetector(model).fc_layers("embedding")
    assert bias.shape == (builders.CLASSES + 1,) and not bias.any() and weight.shape[0] == len(bias)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("keras:a:b", "framework 'keras', expected torchvision"),
        ("torchvision", "detector builder '', expected MODULE:FUNCTION"),
        ("torchvision:tests.detectors:nothing", "module tests.detectors has no function nothing"),
        ("torchvision:tests.nowhere:x", "No module named 'tests.nowhere'"),
        ("torchvision:tests.detectors:not_a_detector", "returned a Linear, expected a GeneralizedRCNN"),
    ],
)
def test_wrong_builders(tmp_path, detector, message):
    with pytest.raises((ValueError, ImportError), match=message):
        load_detector(DetectorSpec(detector, tmp_path / "w.pth"))


def fails() -> nn.Module:
    raise KeyError("no such\narchitecture")


def test_builders_may_fail_in_any_way(tmp_path):
    with pytest.raises(ValueError, match=r"fails' failed with options \{\}: 'no such\\narchitecture'$"):
        load_detector(DetectorSpec("torchvision:tests.test_torchvision:fails", tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["forward", "postprocess_detections"])
def test_heads_that_detect_in_a_way_of_their_own_are_refused(name):
    model = builders.single_level()
    model.roi_heads.__class__ = type("OwnHeads", (RoIHeads,), {name: lambda self, *args: None})
    with pytest.raises(ValueError, match="^RoI heads are OwnHeads, expected RoIHeads with its own forward and post"):
        TorchvisionDetector(model)


def test_keypoints_are_refused():
    model = builders.single_level()
    heads = model.roi_heads
    heads.keypoint_roi_pool = heads.keypoint_head = heads.keypoint_predictor = nn.Identity()
    with pytest.raises(ValueError, match="predicts keypoints, which are not supported"):
        TorchvisionDetector(model)


def test_builder_options():
    from extract.detectors.spec import parse_options

    parsed = parse_options(["num_classes=3", "box_score_thresh=0.5", "name=abc", "weights=null"])
    assert parsed == {"num_classes": 3, "box_score_thresh": 0.5, "name": "abc", "weights": None}
    with pytest.raises(ValueError, match="detector option 'num_classes', expected KEY=VALUE"):
        parse_options(["num_classes"])


@pytest.mark.parametrize(
    ("framework", "remedy"),
    [
        ("detectron2", r"it is not on PyPI: install it from its repository"),
        ("mmdet", r"pip install 'tailcal\[mmdetection]'"),
    ],
)
def test_missing_frameworks_say_what_to_install(monkeypatch, framework, remedy):
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError, match=f"{framework} is not installed; {remedy}") as error:
        load_detector(DetectorSpec(framework))
    assert "\n" not in str(error.value)
