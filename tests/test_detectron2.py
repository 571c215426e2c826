"""The detectron2 adapter: with the original head, our detections are detectron2's own."""

from __future__ import annotations

import builtins
import functools
import json
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import nms

import extract
import fuse.__main__
from calib.scoring import Original
from extract.__main__ import COMMANDS
from extract.class_scores import detector_scores
from extract.config import DetectorSpec
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from extract.detectors import load_detector, registered_dataset
from extract.detectors.agreement import check_inference
from extract.detectors.base import Detector, Image, OwnThresholds, thresholds_of
from extract.matching import GroundTruth, match
from extract.utils.cli import run as run_command
from extract.verify import worst_logit_error
from fuse import class_nms
from fuse.commands.config import Config
from fuse.commands.datasets import resolve_annotations
from fuse.commands.results_config import MergeConfig
from tests.conftest import CLASSES as TINY_CLASSES
from tests.exactness import (
    assert_layers_give_logits,
    assert_same_detections,
    assert_selection_is_applied,
    make_images,
    our_detections,
    select_none,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the frameworks at import
    pytest.importorskip("detectron2.modeling")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
    from detectron2.structures import Boxes, Instances

    from extract.detectors.detectron2 import Detectron2Detector
    from tests.frameworks.detectron2 import (
        ALL,
        KINDS,
        PROJECT,
        SIZE,
        Reference,
        make_config,
        write_reference,
    )
    from tests.frameworks.detectron2_project import CLASSES, FEDERATED, CosinePredictor, ObjectnessPredictor

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # detectron2's anchors


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> Iterator[Callable[[str], Reference]]:
    """Kind of detector → its files and detectron2's own inference."""
    yield functools.cache(lambda kind: write_reference(kind, tmp_path_factory.mktemp("detectron2")))
    MetadataCatalog.pop(FEDERATED, None)


@pytest.fixture(scope="module")
def detectors(references) -> Callable[[str], Detector]:
    """Kind of detector → our adapter of it."""
    return functools.cache(lambda kind: load_detector(references(kind).spec))


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("kind", ALL)
def test_detections_equal_detectron2s(kind, threshold, references, detectors):
    detector, reference = detectors(kind), references(kind).with_threshold(threshold)
    images = make_images(SIZE, SIZE)
    for image, rois in zip(images, detector.forward(images, "logits").rois, strict=True):
        theirs = reference.detections(image)
        assert len(theirs.scores) > 20
        assert_same_detections(our_detections(rois, detector, threshold), theirs)
    check_inference(detector, images[0])
    assert reference.predictor.model.roi_heads.mask_on == (kind != "many classes")


@pytest.mark.parametrize("kind", ALL)
def test_results_equal_the_predictors(kind, references, detectors):
    detector, reference = detectors(kind), references(kind).with_threshold(0.2)
    images = make_images(SIZE, SIZE)
    output = detector.forward(images, "logits")
    results = output.to_framework([our_detections(rois, detector, 0.2) for rois in output.rois])
    for image, result in zip(images, results, strict=True):
        ours, theirs = result["instances"], reference.predict(image)
        assert list(result) == ["instances"] and ours.get_fields().keys() == theirs.get_fields().keys()
        assert len(ours) == len(theirs) > 3 and ours.image_size == theirs.image_size == SIZE
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
        ours, theirs = by_class_and_box(ours), by_class_and_box(theirs)  # almost equal scores come in any order
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=5e-3, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        if ours.has("pred_masks"):
            assert theirs.pred_masks.any() and (ours.pred_masks == theirs.pred_masks).float().mean() > 0.9999
        if ours.has("pred_keypoints"):
            torch.testing.assert_close(ours.pred_keypoints, theirs.pred_keypoints, atol=0.1, rtol=0)


def by_class_and_box(instances: Instances) -> Instances:
    """Returns detectron2's instances sorted by class and box."""
    keys = (*instances.pred_boxes.tensor.T.flip(0), instances.pred_classes)
    return instances[torch.from_numpy(np.lexsort([key.numpy() for key in keys]))]


@pytest.mark.parametrize("kind", ALL)
def test_layers_give_the_logits(kind, detectors):
    detector = detectors(kind)
    without = {"cosine": ["pooled", "embedding"], "c4": ["pooled"]}.get(kind, [])  # not fully connected
    assert all(detector.fc_layers(level) == [] for level in without)
    levels = [level for level in ("pooled", "embedding") if level not in without]
    assert_layers_give_logits(detector, make_images(SIZE), levels)
    for level, (layers, axes) in {"pooled": (2 if kind == "convolutions" else 3, 5), "embedding": (1, 3)}.items():
        assert detector.forward(make_images(SIZE), level).rois[0].features.ndim == axes
        assert level in without or {len(stage) for stage in detector.fc_layers(level)} == {layers}


def test_descriptions(references, detectors):
    for kind in ALL:
        detector = detectors(kind)
        description = detector.description
        assert description["name"] == references(kind).spec.config_file.stem
        assert description["framework"] == "detectron2" and description["nms_iou"] == 0.5
        assert description["activation"] == ("sigmoid" if kind in ("sigmoid", "CenterNet2, cascade") else "softmax")
        with_objectness = kind in ("objectness", "CenterNet2, cascade")
        assert description.get("scores_with_objectness") == (True if with_objectness else None)
        assert detector.num_classes == (1230 if kind == "many classes" else CLASSES) and detector.size == (128, 180)
        assert detector.stages == ((0.5, 0.6, 0.7) if "cascade" in kind else (0.5,))
        specific = kind in ("class-specific", "objectness", "convolutions", "deformable", "lazy")
        assert description["class_agnostic_boxes"] != specific
        assert description["class_agnostic_masks"] == detector.has_masks == (not specific and kind != "many classes")
        assert description.get("pooled_after_convolutions") == (True if kind == "convolutions" else None)
        assert not detector.model.training and not any(p.requires_grad for p in detector.model.parameters())


@pytest.mark.parametrize("kind", ["class-agnostic", "cascade", "c4"])
def test_masks_are_those_of_the_mask_head(kind, detectors):
    detector = detectors(kind)
    images = [replace(image, pixels=image.pixels[:96, :96]) for image in make_images(SIZE, SIZE)]
    output = detector.forward(images, "logits")
    heads, boxes = detector.model.roi_heads, [Boxes(torch.from_numpy(r.boxes) * 128 / 96) for r in output.rois]
    with torch.no_grad():
        resized = detector.model.preprocess_image([{"image": detector.to_tensor(image)} for image in images])
        features = detector.model.backbone(resized.tensor)
        maps = [features[f] for f in heads.in_features]
        pooled = heads._shared_roi_transform(maps, boxes) if kind == "c4" else heads.mask_pooler(maps, boxes)
        expected = heads.mask_head.layers(pooled)[:, 0].sigmoid()
    masks = np.concatenate(output.masks())
    assert masks.dtype == np.uint8 and masks.std() > 0
    np.testing.assert_allclose(masks / 255, expected, atol=0.5 / 255 + 1e-4)


@pytest.mark.parametrize("kind", ["class-specific", "cascade", "c4"])
def test_selection_is_applied(kind, detectors):
    assert_selection_is_applied(detectors(kind))


@pytest.mark.parametrize("kind", ["class-specific", "cascade", "c4"])
def test_no_proposals_and_no_detections(kind, detectors):
    detector = detectors(kind)
    output = detector.forward(make_images(SIZE), "pooled", select_none)
    (rois,) = output.rois
    assert len(rois) == 0 and rois.boxes.shape == ((0, CLASSES, 4) if kind == "class-specific" else (0, 4))
    (result,) = output.to_framework([our_detections(rois, detector, 0.0)])
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, *SIZE)
    if detector.has_masks:
        assert len(output.masks()[0]) == 0


def test_proposals_and_logits_of_each_stage_of_a_cascade_are_detectron2s(detectors):
    detector = detectors("cascade")
    heads, captured = detector.model.roi_heads, []
    (image,) = make_images(SIZE)
    handles = [p.register_forward_hook(lambda _, __, out: captured.append(out[0].numpy())) for p in heads.box_predictor]
    handles.append(
        heads.box_pooler.register_forward_pre_hook(lambda _, args: captured.append(args[1][0].tensor.numpy()))
    )
    with torch.no_grad():
        detector.model.inference([{"image": detector.to_tensor(image)}])
    for handle in handles:
        handle.remove()
    (rois,) = detector.forward([image], "logits").rois
    scale = np.float32([144 / 180, 96 / 120] * 2)
    np.testing.assert_allclose(rois.proposals, np.stack(captured[0::2], 1) * scale, atol=2e-3)
    np.testing.assert_allclose(rois.logits, np.stack(captured[1::2], 1), atol=2e-3)


def test_nms_is_exact_where_class_offsets_are_not():
    """detectron2 shifts boxes by their class's offset in float32. Among 1,230 classes this rounds coordinates to a
    sixteenth of a pixel, which changes the result for boxes whose IoU is close to the threshold."""
    rng = np.random.default_rng(0)
    width = rng.uniform(8, 40, 200)
    corner = rng.uniform(0, 1280, (200, 2))
    first = np.stack([*corner.T, corner[:, 0] + width, corner[:, 1] + width], 1)
    second = first + np.stack([width * (1 / 3 + rng.uniform(-4e-3, 4e-3, 200)), 0 * width] * 2, 1)  # IoU 0.5 ± 0.006
    boxes = np.concatenate([first, second]).astype(np.float32)
    scores = np.zeros((400, 1231), np.float32)
    labels = np.tile(1230 - 200 + np.arange(200), 2)
    scores[np.arange(400), labels] = rng.permutation(np.linspace(0.1, 0.9, 400))
    theirs, kept = fast_rcnn_inference_single_image(
        torch.from_numpy(boxes), torch.from_numpy(scores), (1333, 1333), 0.05, 0.5, 300
    )
    exact = []
    for label in np.unique(labels):
        (of_class,) = np.nonzero(labels == label)
        keep = nms(torch.from_numpy(boxes[of_class]), torch.from_numpy(scores[of_class, label]), 0.5)
        exact.extend(of_class[keep.numpy()])
    exact = sorted(exact, key=lambda roi: -scores[roi, labels[roi]])[:300]
    roi, label, _ = class_nms(boxes, scores, 0.5, 0.05, 300)
    assert roi.tolist() == exact and label.tolist() == labels[exact].tolist()
    assert set(kept.tolist()) != set(exact) and len(theirs) == len(kept)


def test_resized_shares_the_weights(references, detectors):
    detector = detectors("class-agnostic")
    other = detector.resized(160, 300)
    assert other.model is detector.model and detector.size == (128, 180) and other.size == (160, 300)
    sizes = [one.description["settings"]["input_size"] for one in (detector, other)]
    assert sizes == [[128, 180], [160, 300]]
    options = ("INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "300")
    configured = load_detector(replace(references("class-agnostic").spec, detector_options=options))
    images = make_images(SIZE)
    (rois,), (expected,) = (d.forward(images, "logits").rois for d in (other, configured))
    np.testing.assert_allclose(rois.boxes, expected.boxes, atol=1e-4)
    assert not np.allclose(rois.boxes[:20], detector.forward(images, "logits").rois[0].boxes[:20], atol=0.1)


def test_weights_of_the_model_zoo(references, detectors, tmp_path):
    spec, file = references("cascade").spec, tmp_path / "model_final.pkl"
    state = {key: value.numpy() for key, value in detectors("cascade").model.state_dict().items()}
    state["pixel_mean"] = np.zeros((3, 1, 1), np.float32)  # older files hold it
    file.write_bytes(pickle.dumps({"model": state, "__author__": "test", "matching_heuristics": True}))
    images = make_images(SIZE)
    detectors = detectors("cascade"), load_detector(replace(spec, weights=file))
    (rois,), (expected,) = (d.forward(images, "logits").rois for d in detectors)
    np.testing.assert_array_equal(rois.logits, expected.logits)
    one, other = (detector.description for detector in detectors)
    assert one["weights_sha256"] != other["weights_sha256"] and one["tensors_sha256"] == other["tensors_sha256"]


CAFFE2 = {
    r"backbone\.bottom_up\.stem\.conv1\.norm\.": "res_conv1_bn_",
    r"backbone\.bottom_up\.stem\.conv1\.": "conv1_",
    r"backbone\.bottom_up\.(res\d)\.(\d)\.": r"\1_\2_",
    r"backbone\.fpn_lateral(\d)\.": r"fpn_inner_res\1_2_sum_lateral_",
    r"backbone\.fpn_output(\d)\.": r"fpn_res\1_2_sum_",
    r"proposal_generator\.rpn_head\.conv\.": "conv_rpn_fpn2_",
    r"proposal_generator\.rpn_head\.objectness_logits\.": "rpn_cls_logits_fpn2_",
    r"proposal_generator\.rpn_head\.anchor_deltas\.": "rpn_bbox_pred_fpn2_",
    r"roi_heads\.box_head\.fc1\.": "fc6_",
    r"roi_heads\.box_head\.fc2\.": "fc7_",
    r"roi_heads\.box_predictor\.": "",
    r"roi_heads\.mask_head\.mask_fcn(\d)\.": r"_[mask]_fcn\1_",
    r"roi_heads\.mask_head\.deconv\.": "conv5_mask_",
    r"roi_heads\.mask_head\.predictor\.": "mask_fcn_logits_",
    r"shortcut\.norm\.": "branch1_bn_",
    r"shortcut\.": "branch1_",
    r"conv([123])\.norm\.": lambda found: f"branch2{' abc'[int(found[1])]}_bn_",
    r"(?<=\d_\d_)conv([123])\.": lambda found: f"branch2{' abc'[int(found[1])]}_",
    r"(cls_score|bbox_pred)\.": r"\1_",
    r"bn_weight$": "bn_s",
    r"weight$": "w",
    r"bias$": "b",
}
"""detectron2's names → those of Detectron (Caffe2), which detectron2 converts."""


def to_caffe2(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A state_dict as Detectron has it: background first, with a box and a mask of its own, affine normalisation."""
    blobs = {}
    for name, tensor in state.items():
        if "running_" in name:
            continue
        array = tensor.numpy()
        if "cls_score" in name:
            array = np.roll(array, 1, 0)
        if "bbox_pred" in name or "mask_head.predictor" in name:
            array = np.concatenate([array[: 4 if "bbox_pred" in name else 1] * 0, array])
        for pattern, replacement in CAFFE2.items():
            name = re.sub(pattern, replacement, name)
        blobs[name] = array
        blobs[f"{name}_momentum"] = array * 0
    return blobs


def test_names_of_detectron_are_converted_as_by_the_checkpointer(tmp_path):
    reference = write_reference("class-specific", tmp_path, **{"MODEL.KEYPOINT_ON": False})
    detector = load_detector(reference.spec)
    (tmp_path / "blobs.pkl").write_bytes(pickle.dumps({"blobs": to_caffe2(detector.model.state_dict()), "cfg": "x"}))
    assert not any("." in key for key in to_caffe2(detector.model.state_dict()))
    expected = build_model(reference.predictor.cfg)
    DetectionCheckpointer(expected).load(str(tmp_path / "blobs.pkl"))
    expected = expected.state_dict()
    found = load_detector(replace(reference.spec, weights=tmp_path / "blobs.pkl")).model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    for key, value in detector.model.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=2e-5, rtol=0)  # of running variances, 1 - eps or 1


def test_weights_of_a_backbone_alone_are_refused(references, tmp_path):
    blobs = to_caffe2(load_detector(references("lazy").spec).model.state_dict())
    names = [key for key in blobs if key.startswith(("conv1", "res"))]
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({key: blobs[key] for key in names}))
    message = "R-50.pkl: weights of another model: lacks backbone.fpn_lateral2.weight, .* and [0-9]+ more$"
    assert_one_line(replace(references("lazy").spec, weights=tmp_path / "R-50.pkl"), message)


def test_settings_are_those_of_the_config(references, detectors):
    settings = detectors("class-specific").description["settings"]
    assert settings == {
        "input_size": [128, 180],
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [3e4] * 3,
        "channel_order": "RGB",
        "options": [],
    }
    options = ("INPUT.MIN_SIZE_TEST", "100")
    changed = load_detector(replace(references("class-specific").spec, detector_options=options)).description
    assert changed["settings"] == {**settings, "input_size": [100, 180], "options": [*options]}
    assert changed["tensors_sha256"] == detectors("class-specific").description["tensors_sha256"]


def test_config_sha256_depends_on_what_changes_the_output(references, tmp_path):
    def digest(kind: str, *options: str) -> str:
        return load_detector(replace(references(kind).spec, detector_options=options)).description["config_sha256"]

    plain = digest("class-agnostic")
    copied = tmp_path / "weights.pth"
    copied.write_bytes((references("class-agnostic").spec.config_file.parent / "model.pth").read_bytes())
    assert digest("class-agnostic", "MODEL.WEIGHTS", str(copied), "SEED", "3") == plain
    others = [("MODEL.RPN.NMS_THRESH", "0.6"), ("INPUT.MIN_SIZE_TEST", "100")]
    assert len({plain, *(digest("class-agnostic", *option) for option in others)}) == 3
    lazy = digest("lazy")
    assert digest("lazy") == lazy != digest("lazy", "model.proposal_generator.nms_thresh=0.6")


def test_config_sha256_leaves_out_what_our_plugin_adds(references, monkeypatch):
    from detectron2.config import defaults

    digests = set()
    for method in ("one", "another"):
        monkeypatch.setitem(defaults._C.MODEL, "CALIBRATION", CfgNode({"METHOD": method}, new_allowed=True))
        digests.add(load_detector(references("class-agnostic").spec).description["config_sha256"])
    assert len(digests) == 1


def test_a_missing_dependency_of_a_framework_is_named(monkeypatch):
    for name in ("extract.detectors.detectron2", "extract.detectors.detectron2_config"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.raises(ImportError, match="^omegaconf is not installed; it is not on PyPI: install it") as error:
        load_detector(DetectorSpec("detectron2"))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny_cascade(tiny, tmp_path_factory) -> Reference:
    """A cascade for the tiny dataset's classes and images."""
    options = {"MODEL.ROI_HEADS.NUM_CLASSES": TINY_CLASSES, "INPUT.MIN_SIZE_TEST": 112, "INPUT.MAX_SIZE_TEST": 112}
    return write_reference("cascade", tmp_path_factory.mktemp("tiny_cascade"), **options)


def tiny_config(tiny, cascade: Reference, split: str, out: Path, **changes) -> extract.Config:
    spec = {"detector": cascade.spec.detector, "config_file": cascade.spec.config_file, "weights": None}
    return tiny.config(split, out, **(spec | {"detector_options": (), "level": "embedding"} | changes))


@pytest.mark.parametrize("split", ["train", "val"])
def test_cache_of_a_cascade(split, tiny, tiny_cascade, tmp_path):
    cache = extract.run(
        tiny_config(tiny, tiny_cascade, split, tmp_path / "cache", level="pooled", min_images_per_class=4)
    )
    assert cache.stages == (0.5, 0.6, 0.7) and cache.fields["features"] == (3, 32, 7, 7)
    assert worst_logit_error(cache) < 5e-3
    annotations, later = read_annotations(tiny.data / f"{split}.json"), 0
    for rois in cache:
        position = int(np.searchsorted(annotations.image_ids, rois.image_id))
        of = annotations.image_slice(position)
        objects = (getattr(annotations, name)[of] for name in ("boxes", "labels", "ids", "crowd"))
        gt = GroundTruth(*objects, exhaustive=bool(annotations.exhaustive[position]))
        own = ~rois.is_gt
        assert rois.is_gt.sum() == (len(gt.ids) if split == "train" else 0)
        for stage, threshold in enumerate(cache.stages):
            labels, ious, _ = match(rois.proposals[:, stage], gt, threshold, TINY_CLASSES)
            np.testing.assert_allclose(rois.ious[:, stage], ious, atol=1e-3)
            clear = own & (np.abs(ious - threshold) > 1e-3)
            np.testing.assert_array_equal(rois.labels[clear, stage], labels[clear])
            if split == "train":
                np.testing.assert_allclose(rois.proposals[rois.is_gt, stage], gt.boxes, atol=1e-3)
                assert rois.labels[rois.is_gt, stage].tolist() == gt.labels.tolist()
        later += (rois.labels[own, 0] != rois.labels[own, 2]).sum()
    assert later > 0, "stages differ in what matches"


def test_val_cache_gives_detectron2s_detections(tiny, tiny_cascade, tmp_path):
    cache = extract.run(tiny_config(tiny, tiny_cascade, "val", tmp_path / "cache", proposals=1000, level="logits"))
    assert cache.fields["masks"] == (28, 28)
    reference, annotations = tiny_cascade.with_threshold(0.05), read_annotations(tiny.data / "val.json")
    detector = load_detector(tiny_cascade.spec)
    for position in (0, 5):
        pixels = read_image(tiny.data / "val", annotations.file_names[position], (112, 112))
        image = Image(int(annotations.image_ids[position]), pixels)
        ours = our_detections(cache.image(image.image_id), detector, 0.05)
        theirs = reference.detections(image)
        shared = min(len(ours.scores), len(theirs.scores)) - 3  # logits of a cache are half floats
        np.testing.assert_allclose(ours.scores[:shared], theirs.scores[:shared], atol=2e-3)


def test_a_changed_config_is_noticed(tiny, tiny_cascade, tmp_path):
    config = tiny_config(tiny, tiny_cascade, "val", tmp_path / "cache", min_images_per_class=1)
    extract.run(config)
    other = tmp_path / "cascade.yaml"
    other.write_text(f"_BASE_: {config.config_file}\nMODEL:\n  RPN:\n    NMS_THRESH: 0.65\n")
    with pytest.raises(extract.CacheError, match="made with other options: detector.config_sha256"):
        extract.run(replace(config, config_file=other))


def test_datasets_by_name(tiny, tiny_cascade, tmp_path):
    """On the command line, the framework's own options follow the flags."""
    names = {split: f"test_detectron2_{split}" for split in ("train", "val")}
    for split, name in names.items():
        register_coco_instances(name, {}, str(tiny.data / f"{split}.json"), str(tiny.data / split))
    try:
        arguments = {
            "detector": tiny_cascade.spec.detector,
            "config-file": tiny_cascade.spec.config_file,
            "annotations": names["val"],
            "train-annotations": names["train"],
            "split": "val",
            "level": "logits",
            "min-images-per-class": 1,
            "device": "cpu",
            "out": tmp_path / "cache",
        }
        flags = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
        assert run_command("python -m extract", COMMANDS, [*flags, "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.6"]) == 0
        assert extract.open_cache(str(tmp_path / "cache")).detector["nms_iou"] == 0.6
        fused = [
            "--cache",
            tmp_path / "cache",
            "--method",
            "norcal",
            "--annotations",
            names["val"],
            "--iou-types",
            "bbox",
        ]
        assert fuse.__main__.main([str(part) for part in (*fused, "--out", tmp_path / "fused")]) == 0
        predicted = [
            "predict",
            "--annotations",
            names["val"],
            "--detector",
            tiny_cascade.spec.detector,
            "--config-file",
        ]
        predicted += [tiny_cascade.spec.config_file, "--method", "norcal", "--fit-cache", tmp_path / "cache"]
        predicted += [
            "--device",
            "cpu",
            "--max-detections",
            "20",
            "--out",
            tmp_path / "predicted",
            "MODEL.ROI_HEADS.NMS_THRESH_TEST",
            "0.6",
        ]
        assert fuse.__main__.main(list(map(str, predicted))) == 0
        results = json.loads((tmp_path / "predicted" / "predictions.json").read_text())
        assert {r["image_id"] for r in results} <= set(read_annotations(tiny.data / "val.json").image_ids)
        evaluated = ["evaluate", tmp_path / "predicted" / "predictions.json", "--annotations", names["val"]]
        assert fuse.__main__.main([*map(str, evaluated), "--train-annotations", names["train"]]) == 0
        files = {"annotations": Path(names["val"]), "cache": str(tmp_path / "cache"), "out": tmp_path / "fused"}
        for kind in (Config, MergeConfig):  # which paint masks in the images
            more = {"detections": (Path("a"), Path("b"))} if kind is MergeConfig else {"mode": "original"}
            named = resolve_annotations(kind(**files, **more, detector=tiny_cascade.spec.detector))
            assert (named.annotations, named.images) == (tiny.data / "val.json", tiny.data / "val")
        assert registered_dataset("detectron2", names["val"]) == (tiny.data / "val.json", tiny.data / "val")
        assert registered_dataset("detectron2", "nowhere") is None
        DatasetCatalog.register("test_detectron2_function", list)
        with pytest.raises(ValueError, match="'test_detectron2_function' of detectron2's catalog has no json_file"):
            registered_dataset(f"detectron2:{PROJECT}", "test_detectron2_function")
    finally:
        for name in (*names.values(), "test_detectron2_function"):
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("MODEL.NONSENSE 3", "Non-existent key: MODEL.NONSENSE"),
        ("MODEL.MASK_ON", "Override list has odd length"),
        ("MODEL.META_ARCHITECTURE Nothing", "No object named 'Nothing' found in 'META_ARCH' registry!"),
        ("MODEL.META_ARCHITECTURE ProposalNetwork", "model is a ProposalNetwork, expected a GeneralizedRCNN"),
        ("MODEL.META_ARCHITECTURE PanopticFPN", "model is a PanopticFPN, expected a GeneralizedRCNN with its own"),
        ("MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals", "model has no proposal_generator, expected"),
        ("MODEL.ROI_HEADS.NAME OddROIHeads", "RoI heads are OddROIHeads, FastRCNNOutputLayers: their inference failed"),
        ("MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_HEADS.IOU_THRESHOLDS [0.4]", "assert cascade_ious"),
        ("MODEL.ROI_HEADS.NUM_CLASSES 7", "weights of another model: .* has shape .*, the model's"),
        ("INPUT.FORMAT CMYK", "input format is 'CMYK', expected one of BGR, RGB, L, YUV-BT.601"),
        ("MODEL.WEIGHTS detectron2://a/model.pkl", "weights detectron2://a/model.pkl, expected a local file: download"),
        ("MODEL.WEIGHTS ", "names no weights .*: give --weights"),
        ("MODEL.WEIGHTS nowhere.pth", "nowhere.pth: no such weights file"),
    ],
)
def test_wrong_options_of_a_yaml(options, message, references):
    spec = replace(references("class-agnostic").spec, detector_options=tuple(options.split(" ")))
    assert_one_line(spec, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("modle.roi_heads.num_classes=3", "has no 'modle', only model, dataloader, train"),
        ("model.roi_heads.nonsense=3", "unexpected keyword argument 'nonsense'"),
        ("model.roi_heads.num_classes", "num_classes"),
        ("dataloader.test.mapper.augmentations=[]", None),
        (
            "dataloader.test.mapper.augmentations.0.short_edge_length=[100,200]",
            "shorter edge .* is .100, 200., expected",
        ),
        (
            "dataloader.test.mapper.augmentations=[{_target_:torch.nn.Identity}]",
            "are .'Identity'., expected one Resize",
        ),
        ("train.init_checkpoint=https://a/model.pkl", "weights https://a/model.pkl, expected a local file"),
    ],
)
def test_wrong_options_of_a_lazy_config(options, message, references):
    spec = replace(references("lazy").spec, detector_options=(options,))
    if message:
        assert_one_line(spec, message)
    else:
        assert load_detector(spec).size == (800, 1333)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "give its --config-file"),
        ("a.yaml", None, "no such config file"),
        ("a.yaml", "MODEL: [", "while parsing a flow node"),
        ("a.yaml", "MODEL:\n  NONSENSE: 1\n", "Non-existent config key: MODEL.NONSENSE"),
        ("a.yaml", "_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("a.py", "model = (", "syntax error"),
        ("a.py", "modle = {}", "has no 'model', only modle"),
        ("a.py", "import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("a.py", "model = {'_target_': 'torch.nn.Identity'}", "model is a Identity, expected a GeneralizedRCNN"),
    ],
)
def test_wrong_config_files(name, content, message, tmp_path):
    file = tmp_path / name if name else None
    if file and content is not None:
        file.write_text(content)
    importer = builtins.__import__
    assert_one_line(DetectorSpec("detectron2", config_file=file, device="cpu"), message, file)
    assert builtins.__import__ is importer


def assert_one_line(spec: DetectorSpec, message: str, file: Path | None = None) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_detector(spec)
    assert "\n" not in str(caught.value) and str(file or "") in str(caught.value)


def test_a_predictor_with_other_scores_is_refused():
    model = build_model(make_config(KINDS["class-agnostic"]))
    model.roi_heads.box_predictor.predict_probs = lambda predictions, proposals: [predictions[0].softmax(1) ** 2]
    with pytest.raises(ValueError, match="neither softmax nor sigmoid of its logits"):
        Detectron2Detector(model, ResizeShortestEdge(128, 180))


def test_roi_heads_that_score_in_a_way_that_is_not_known_are_refused(monkeypatch):
    monkeypatch.setattr(ObjectnessPredictor, "power", 1.0)
    model = build_model(make_config(KINDS["objectness"]))
    message = (
        r"RoI heads are ObjectnessROIHeads, ObjectnessPredictor: the framework's own inference scores boxes up to "
        r"0\.\d+, this library up to 0\.\d+; expected class scores, or the root of class score times proposal score"
    )
    with pytest.raises(ValueError, match=message):
        Detectron2Detector(model, ResizeShortestEdge(128, 180))


def test_objectness_is_a_probability_whatever_the_proposals_have(detectors):
    for kind in ("objectness", "CenterNet2, cascade"):
        (rois,) = detectors(kind).forward(make_images(SIZE), "logits").rois
        assert np.abs(rois.objectness - 0.5).max() < 0.01, "of the random RPN; the sigmoid of 0.5 is 0.62"
        expected = np.sqrt(
            Original.from_description({**detectors(kind).description, "scores_with_objectness": False}).scores(rois)
            * rois.objectness[:, None]
        )
        own = Original.from_description(detectors(kind).description)
        np.testing.assert_allclose(own.scores(rois), expected)
        scores = detector_scores(rois.logits, rois.objectness, detectors(kind).description)
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_predictor_with_its_own_inference_is_said_to_be_replaced(references, monkeypatch, caplog):
    """As a project's soft-NMS; `CosinePredictor` has the scores of its own, but not the inference."""
    assert thresholds_of(load_detector(references("class-agnostic").spec)) == OwnThresholds(0.05, 300)
    load_detector(references("cosine").spec)
    assert "own inference" not in caplog.text
    inherited = CosinePredictor.inference
    monkeypatch.setattr(CosinePredictor, "inference", lambda self, *inputs: inherited(self, *inputs), raising=False)
    load_detector(references("cosine").spec)
    assert "cosine.yaml: NMS at IoU 0.5 of its scores and boxes replaces the own inference of Cosine" in caplog.text
