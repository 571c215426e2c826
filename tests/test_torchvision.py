"""The torchvision adapter: with the original head, our detections are torchvision's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads

import tests.frameworks.torchvision as builders
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.detectors.agreement import check_inference
from extract.detectors.common import capture_inputs
from extract.detectors.spec import parse_options
from extract.detectors.torchvision import TorchvisionDetector
from tests.exactness import (
    assert_layers_give_logits,
    assert_same_detections,
    assert_selection_is_applied,
    make_images,
    our_detections,
    select_none,
)

MODELS = {
    "collapsing boxes": builders.collapsing_boxes,
    "class-specific, resized": builders.mask_rcnn,
    "one level, no masks": builders.single_level,
    "class-agnostic": builders.class_agnostic,
    "convolutions": builders.convolutions,
}


def run_torchvision(model: nn.Module, images: list) -> list[dict[str, torch.Tensor]]:
    """Torchvision's own inference."""
    with torch.inference_mode():
        return model([torch.from_numpy(i.pixels).permute(2, 0, 1).float() / 255 for i in images])


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("name", MODELS)
def test_detections_equal_torchvisions(name, threshold):
    model = MODELS[name]()
    model.roi_heads.score_thresh = threshold
    detector = TorchvisionDetector(model)
    images = make_images((96, 144), (144, 96))
    results = run_torchvision(model, images)
    for rois, result in zip(detector.forward(images, "logits").rois, results, strict=True):
        expected, _ = detector.to_arrays(result)
        assert len(expected.scores) > 20
        assert_same_detections(our_detections(rois, detector, threshold), expected)
    check_inference(detector, images[1])
    assert model.roi_heads.score_thresh == threshold and model.roi_heads.has_mask() == ("no masks" not in name)


@pytest.mark.parametrize("name", MODELS)
def test_results_equal_torchvisions(name):
    model = MODELS[name]()
    model.roi_heads.score_thresh = 0.05
    detector = TorchvisionDetector(model)
    images = make_images((96, 144), (96, 144))
    output = detector.forward(images, "logits")
    results = output.to_framework([our_detections(rois, detector, 0.05) for rois in output.rois])
    for ours, theirs in zip(results, run_torchvision(model, images), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], atol=5e-3, rtol=0)
    results[0]["boxes"] *= 2  # users edit results in place


def test_resized_shares_the_weights():
    detector = TorchvisionDetector(builders.mask_rcnn())
    other = detector.resized(160, 300)
    assert other.model.backbone is detector.model.backbone and detector.size == (120, 200) and other.size == (160, 300)
    sizes = [one.description["settings"]["input_size"] for one in (detector, other)]
    assert sizes == [[120, 200], [160, 300]]
    model = builders.mask_rcnn(min_size=160, max_size=300)
    (image,) = make_images((96, 144))
    (rois,) = other.forward([image], "logits").rois
    (expected,) = TorchvisionDetector(model).forward([image], "logits").rois
    np.testing.assert_allclose(rois.boxes, expected.boxes, atol=1e-3)
    assert not np.allclose(rois.boxes[:20], detector.forward([image], "logits").rois[0].boxes[:20], atol=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_layers_give_the_logits(name):
    assert_layers_give_logits(TorchvisionDetector(MODELS[name]()), make_images((96, 96)))


def test_pooled_features_are_the_input_of_the_fully_connected_layers():
    model = builders.convolutions()
    detector, images = TorchvisionDetector(model), make_images((96, 96))
    assert detector.description["pooled_after_convolutions"]
    assert "pooled_after_convolutions" not in TorchvisionDetector(builders.mask_rcnn()).description
    with capture_inputs([model.roi_heads.box_head, model.roi_heads.box_head[3]]) as captured:
        (rois,) = detector.forward(images, "pooled").rois
    ((before,), (after,)) = captured
    assert before.shape[1:] == (builders.minilvis.CHANNELS, 7, 7) and rois.features.shape[1:] == (1, 24, 7, 7)
    torch.testing.assert_close(rois.features[:, 0].flatten(1), after)
    (none,) = detector.forward(images, "pooled", select_none).rois
    assert none.features.shape == (0, 1, 24, 7, 7)


def test_pooled_features_stay_the_box_heads_input_without_layers_that_follow():
    """A classifier that is not linear: new heads may begin with the convolutions' input, as before."""
    model = builders.convolutions()
    predictor = model.roi_heads.box_predictor
    predictor.cls_score = nn.Sequential(predictor.cls_score, nn.Tanh())
    detector = TorchvisionDetector(model)
    (rois,) = detector.forward(make_images((96, 96)), "pooled").rois
    assert rois.features.shape[2:] == (builders.minilvis.CHANNELS, 7, 7) and detector.fc_layers("pooled") == []
    assert "pooled_after_convolutions" not in detector.description


@pytest.mark.parametrize("classes", [3, 7])
def test_the_classifier_is_recognised_by_its_values(classes):
    """With three classes a class-agnostic regressor has as many outputs as the classifier."""
    detector = TorchvisionDetector(builders.minilvis.mask_rcnn(classes))
    ((*_, (weight, _)),) = detector.fc_layers("pooled")
    own = detector.model.roi_heads.box_predictor.cls_score.weight
    torch.testing.assert_close(torch.from_numpy(np.roll(weight, 1, 0)), own)


@pytest.mark.long
def test_version_2_of_torchvisions_faster_rcnn():
    model = builders.faster_rcnn_v2()
    detector, images = TorchvisionDetector(model), make_images((96, 144))
    assert_layers_give_logits(detector, images)
    for threshold in (0.0, 0.05):
        model.roi_heads.score_thresh = threshold
        (rois,), (result,) = detector.forward(images, "logits").rois, run_torchvision(model, images)
        assert_same_detections(our_detections(rois, detector, threshold), detector.to_arrays(result)[0])


def test_selection_is_applied():
    assert_selection_is_applied(TorchvisionDetector(builders.mask_rcnn()))


def test_no_proposals():
    detector = TorchvisionDetector(builders.mask_rcnn())
    (rois,) = detector.forward(make_images((96, 96)), "pooled", select_none).rois
    assert len(rois) == 0 and rois.boxes.shape == (0, builders.CLASSES, 4)


def test_masks_are_those_of_the_model():
    model = builders.class_agnostic()
    detector = TorchvisionDetector(model)
    assert detector.has_masks and not TorchvisionDetector(builders.mask_rcnn()).has_masks
    images = make_images((144, 144), (144, 144))  # a size that the model does not change
    output = detector.forward(images, "logits")
    rois, masks = output.rois[1], output.masks()[1]
    with torch.inference_mode():
        features = model.backbone(model.transform([detector.to_tensor(i) for i in images])[0].tensors)
        boxes = [torch.zeros(0, 4), torch.from_numpy(rois.boxes)]
        pooled = model.roi_heads.mask_roi_pool(features, boxes, [(144, 144)] * 2)
        expected = model.roi_heads.mask_predictor(model.roi_heads.mask_head(pooled))[:, 3].sigmoid()
    np.testing.assert_allclose(masks / 255, expected, atol=0.5 / 255 + 1e-5)


def test_class_specific_boxes_have_no_masks():
    model = builders.class_agnostic()
    predictor = model.roi_heads.box_predictor
    model.roi_heads.box_predictor = nn.ModuleDict({"cls": predictor.cls_score, "box": nn.Linear(256, 4 * 8)})
    model.roi_heads.box_predictor.forward = lambda x: (predictor.cls_score(x), model.roi_heads.box_predictor["box"](x))
    detector = TorchvisionDetector(model)
    assert not detector.class_agnostic_boxes and not detector.has_masks


def test_a_classifier_without_bias():
    model = builders.single_level()
    old = model.roi_heads.box_predictor.cls_score
    model.roi_heads.box_predictor.cls_score = nn.Linear(old.in_features, old.out_features, bias=False)
    detector = TorchvisionDetector(model)
    ((*_, (weight, bias)),) = detector.fc_layers("embedding")
    assert bias.shape == (builders.CLASSES + 1,) and not bias.any() and weight.shape[0] == len(bias)
    state = detector.state_dict_with_classifiers([(2 * weight, bias)])
    name = "roi_heads.box_predictor.cls_score.weight"
    torch.testing.assert_close(state[name], 2 * model.state_dict()[name])
    with pytest.raises(ValueError, match=f"{name} has no bias, which the method would change"):
        detector.state_dict_with_classifiers([(weight, bias + 1)])


def test_a_classifier_that_is_not_linear():
    model = builders.single_level()
    predictor = model.roi_heads.box_predictor
    predictor.cls_score = nn.Sequential(predictor.cls_score, nn.Linear(builders.CLASSES + 1, builders.CLASSES + 1))
    detector = TorchvisionDetector(model)
    assert detector.fc_layers("embedding") == detector.fc_layers("pooled") == []
    with pytest.raises(ValueError, match="the classifier is not one linear layer per stage"):
        detector.state_dict_with_classifiers([(np.zeros((2, 2)), np.zeros(2))])


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("keras:a:b", "framework 'keras', expected torchvision"),
        ("torchvision", "detector builder '', expected MODULE:FUNCTION"),
        ("torchvision:tests.frameworks.torchvision:nothing", "tests.frameworks.torchvision has no function nothing"),
        ("torchvision:tests.nowhere:x", "No module named 'tests.nowhere'"),
        ("torchvision:tests.frameworks.torchvision:not_a_detector", "returned a Linear, expected a GeneralizedRCNN"),
        (
            "torchvision:tests.frameworks.torchvision:failing",
            r"failing' failed with options \{\}: 'no such\\narchitecture'$",
        ),
    ],
)
def test_wrong_builders(tmp_path, detector, message):
    with pytest.raises((ValueError, ImportError), match=message):
        load_detector(DetectorSpec(detector, tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["forward", "postprocess_detections"])
def test_roi_heads_with_another_inference_are_refused(name):
    model = builders.single_level()
    own_heads = type("OwnHeads", (RoIHeads,), {name: lambda self, *args: None})
    heads = own_heads.__new__(own_heads)
    vars(heads).update(vars(model.roi_heads))
    model.roi_heads = heads
    with pytest.raises(ValueError, match="^RoI heads are OwnHeads, expected RoIHeads with its own forward and post"):
        TorchvisionDetector(model)


def test_keypoints_are_refused():
    model = builders.single_level()
    heads = model.roi_heads
    heads.keypoint_roi_pool = heads.keypoint_head = heads.keypoint_predictor = nn.Identity()
    with pytest.raises(ValueError, match="predicts keypoints, which are not supported"):
        TorchvisionDetector(model)


def test_builder_options():
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
def test_missing_frameworks_are_named(monkeypatch, framework, remedy):
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError, match=f"{framework} is not installed; {remedy}") as error:
        load_detector(DetectorSpec(framework))
    assert "\n" not in str(error.value)
