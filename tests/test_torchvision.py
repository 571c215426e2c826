"""The torchvision adapter: with the original head, our detections are torchvision's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tests.detectors as builders
from calib.scoring import Original
from extract.detectors import Image, load_detector
from extract.detectors.torchvision import TorchvisionDetector, load_weights
from fuse import class_nms


def everything(_: int, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(proposals)), np.empty((0, 4), np.float32)


def mini_lvis() -> nn.Module:
    from benchmarks.minilvis.detector import mask_rcnn

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = mask_rcnn(builders.CLASSES, rpn_post_nms_top_n_test=80)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
        return model


def make_images(*sizes: tuple[int, int]) -> list[Image]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h // 8, w // 8, 3)).repeat(8, 0).repeat(8, 1) for h, w in sizes]
    return [Image(i + 1, pixels.astype(np.uint8)) for i, pixels in enumerate(images)]


MODELS = {
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
    found = detector.rois(images, everything, "logits", masks=False)
    with torch.inference_mode():
        expected = model([torch.from_numpy(i.pixels).permute(2, 0, 1).float() / 255 for i in images])
    for rois, reference in zip(found, expected, strict=True):
        roi, label, score = class_nms(
            rois.boxes, Original().scores(rois), detector.description["nms_iou"], threshold, max_detections=300
        )
        boxes = rois.boxes[roi] if rois.boxes.ndim == 2 else rois.boxes[roi, label]
        assert len(score) == len(reference["scores"]) > 20
        np.testing.assert_allclose(score, reference["scores"], atol=1e-5)
        # Detections of equal score may come in another order.
        ours = np.column_stack([np.round(score, 4), label, boxes])
        theirs = np.column_stack([reference["scores"].numpy().round(4), reference["labels"] - 1, reference["boxes"]])
        distinct = np.abs(np.diff(score, prepend=9, append=-9))
        clear = np.minimum(distinct[:-1], distinct[1:]) > 1e-5
        assert clear.mean() > 0.5
        np.testing.assert_allclose(ours[clear], theirs[clear], atol=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_features_lead_to_the_logits(name):
    detector = TorchvisionDetector(MODELS[name]())
    for level in ("pooled", "embedding"):
        (rois,) = detector.rois(make_images((96, 96)), everything, level, masks=False)
        (layers,) = detector.head(level)
        x = torch.from_numpy(rois.features[:, 0]).float().flatten(1)
        for depth, (weight, bias) in enumerate(layers if level == "pooled" else layers[-1:]):
            x = torch.relu(x) if depth else x
            x = x @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        np.testing.assert_allclose(x, rois.logits[:, 0], atol=0.01 * np.abs(rois.logits).max())
    assert detector.head("logits") == []


def test_added_boxes_come_last_and_go_through_the_head():
    detector = TorchvisionDetector(builders.mask_rcnn())
    extra = np.float32([[10, 20, 60, 70]])
    (rois,) = detector.rois(make_images((96, 144)), lambda i, p: (np.arange(3)[::-1], extra), "pooled", masks=False)
    (plain,) = detector.rois(make_images((96, 144)), everything, "pooled", masks=False)
    assert rois.is_gt.tolist() == [False, False, False, True] and rois.objectness[3] == 1
    np.testing.assert_allclose(rois.proposals[3, 0], extra[0], atol=1e-4)
    np.testing.assert_allclose(rois.logits[:3], plain.logits[:3][::-1], atol=1e-4)
    assert (np.diff(plain.objectness) <= 0).all(), "best first"


def test_no_proposals_at_all():
    detector = TorchvisionDetector(builders.mask_rcnn())
    nothing = lambda i, p: (np.empty(0, int), np.empty((0, 4), np.float32))  # noqa: E731
    (rois,) = detector.rois(make_images((96, 96)), nothing, "pooled", masks=False)
    assert len(rois) == 0 and rois.boxes.shape == (0, builders.CLASSES, 4)


def test_masks_are_those_of_the_model():
    model = mini_lvis()
    detector = TorchvisionDetector(model)
    assert detector.has_masks and not TorchvisionDetector(builders.mask_rcnn()).has_masks
    images = make_images((144, 144), (144, 144))  # a size that the model does not change
    rois = detector.rois(images, everything, "logits", masks=True)[1]
    with torch.inference_mode():
        features = model.backbone(model.transform([detector._tensor(i) for i in images])[0].tensors)
        boxes = [torch.zeros(0, 4), torch.from_numpy(rois.boxes)]
        pooled = model.roi_heads.mask_roi_pool(features, boxes, [(144, 144)] * 2)
        expected = model.roi_heads.mask_predictor(model.roi_heads.mask_head(pooled))[:, 3].sigmoid()
    np.testing.assert_allclose(rois.masks / 255, expected, atol=0.5 / 255 + 1e-5)


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
    ((*_, (weight, bias)),) = TorchvisionDetector(model).head("embedding")
    assert bias.shape == (builders.CLASSES + 1,) and not bias.any() and weight.shape[0] == len(bias)


def test_weights_files(tmp_path):
    from safetensors.torch import save_file

    model = builders.single_level()
    state = model.state_dict()
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": wrapped, "iteration": 5}, tmp_path / "checkpoint.pth")
    assert load_weights(builders.single_level(), tmp_path / "half.safetensors") != ""
    other = builders.single_level()
    nn.init.zeros_(other.roi_heads.box_predictor.cls_score.weight)
    load_weights(other, tmp_path / "checkpoint.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), state.values(), strict=True))


def test_wrong_weights_files(tmp_path):
    model = builders.single_level()
    state = model.state_dict()

    def refused(content, name="w.pth"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError) as error:
            load_weights(model, path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        return str(error.value)

    assert "lacks rpn.head.bbox_pred.bias" in refused({k: v for k, v in state.items() if "rpn.head.bbox" not in k})
    assert "has extra, which the model has not" in refused({**state, "extra": torch.zeros(1)})
    message = refused({**state, "roi_heads.box_predictor.cls_score.bias": torch.zeros(99)})
    assert "roi_heads.box_predictor.cls_score.bias has shape (99,), the model's (8,)" in message
    assert "not a file of tensors alone" in refused({"model": state, "hook": np.array})
    assert "not a file of tensors alone" in refused(b"garbage")
    assert "not a safetensors file" in refused(b"garbage", "w.safetensors")
    assert "not a state_dict of tensors" in refused([1, 2])
    with pytest.raises(FileNotFoundError, match="none.pth: no such weights file"):
        load_weights(model, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("keras:a:b", "framework 'keras', expected torchvision"),
        ("torchvision", "detector builder '', expected MODULE:BUILDER"),
        ("torchvision:tests.detectors:nothing", "module tests.detectors has no function nothing"),
        ("torchvision:tests.nowhere:x", "No module named 'tests.nowhere'"),
        ("torchvision:tests.detectors:not_a_detector", "returned a Linear, expected a GeneralizedRCNN"),
    ],
)
def test_wrong_builders(tmp_path, detector, message):
    from extract.config import DetectorSpec

    with pytest.raises((ValueError, ImportError), match=message):
        load_detector(DetectorSpec(detector, tmp_path / "w.pth"))


def test_builder_options():
    from extract.detectors import parse_options

    parsed = parse_options(["num_classes=3", "box_score_thresh=0.5", "name=abc", "weights=null"])
    assert parsed == {"num_classes": 3, "box_score_thresh": 0.5, "name": "abc", "weights": None}
    with pytest.raises(ValueError, match="detector option 'num_classes', expected KEY=VALUE"):
        parse_options(["num_classes"])
