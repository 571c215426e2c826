"""The mmdetection adapter: with the original head, our detections are those of `inference_detector`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import nms

import extract
from benchmarks import mmcv_ext
from calib.scoring import Original
from extract.config import DetectorSpec
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from extract.detectors import load_detector
from extract.detectors.agreement import check_inference
from extract.detectors.base import Image, ImageDetections, OwnThresholds, thresholds_of
from extract.detectors.mmdet_weights import convert_names
from extract.detectors.weights import load_weights
from extract.matching import GroundTruth, match
from extract.verify import LOGIT_TOLERANCE, worst_logit_error
from fuse import class_nms
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
    warnings.simplefilter("ignore")  # of the frameworks about each other, at import
    pytest.importorskip("mmcv")
    mmcv_ext.install()
    pytest.importorskip("mmdet")
    from mmcv.ops import ModulatedDeformConv2dPack
    from mmdet.models.layers import multiclass_nms
    from mmengine.structures import InstanceData

    from tests.frameworks.mmdet import (
        CHANNELS,
        CLASSES,
        KINDS,
        SEESAW,
        cascade,
        changed,
        hybrid,
        mask_rcnn,
        mask_scoring,
        reference,
        write_config,
        write_spec,
    )

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # of a cascade's masks
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> Callable[[str], DetectorSpec]:
    """Kind of detector → its files."""
    return functools.cache(lambda kind: write_spec(tmp_path_factory.mktemp("mmdet"), KINDS[kind]()))


@pytest.mark.parametrize(("threshold", "batch"), [(0.0, 1), (0.05, 2)])
@pytest.mark.parametrize("name", KINDS)
def test_detections_and_results_equal_inference_detector(specs, name, threshold, batch):
    detector = load_detector(specs(name))
    images = make_images(*[(96, 144)] * batch)
    expected = reference(specs(name), images, threshold)
    check_inference(detector, images[0])
    output = detector.forward(images, "logits")
    ours = [our_detections(rois, detector, threshold) for rois in output.rois]
    for mine, theirs in zip(ours, expected, strict=True):
        assert len(mine.scores) == 300 if threshold == 0 else len(mine.scores) > 20
        assert_same_detections(mine, detector.to_arrays(theirs)[0])
    for mine, theirs in zip(output.to_framework(ours), expected, strict=True):
        (found, masks), (expected_found, expected_masks) = map(detector.to_arrays, (mine, theirs))
        assert_same_detections(found, expected_found)
        assert type(mine) is type(theirs) and set(mine.pred_instances.keys()) == set(theirs.pred_instances.keys())
        for key in ("ori_shape", "img_shape", "scale_factor", "pad_shape", "batch_input_shape"):
            assert mine.get(key) == theirs.get(key)
        if detector.model.with_mask:
            same = found.labels == expected_found.labels  # equal scores may have another order
            assert same.mean() > 0.97 and (masks != expected_masks)[same].mean() < 1e-4
            assert masks.dtype == bool and masks.shape[1:] == (96, 144) and masks.any((1, 2)).mean() > 0.1


def test_mask_scoring_rescores_live_results(tmp_path, caplog):
    detector = load_detector(spec := write_spec(tmp_path, mask_scoring()))
    assert "only live ones are rescored by the mask_iou_head" in caplog.text
    images = make_images((96, 144))
    check_inference(detector, images[0])
    (theirs,) = reference(spec, images, 0.05)
    output = detector.forward(images, "logits")
    before = our_detections(output.rois[0], detector, 0.05)
    (result,) = output.to_framework([before])
    (found, masks), (expected, expected_masks) = map(detector.to_arrays, (result, theirs))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert np.abs(found.scores - before.scores).max() > 0.05 and (found.labels == expected.labels).all()
    assert (masks == expected_masks).mean() > 0.9999


def test_no_proposals_and_no_detections(specs):
    for name in ("cascade", "ResNeXt, no masks"):
        detector = load_detector(specs(name))
        output = detector.forward(make_images((96, 96)), "pooled", select_none)
        (rois,) = output.rois
        assert len(rois) == 0 and rois.boxes.shape in ((0, 4), (0, CLASSES, 4)) and rois.features.shape[1] == 3
        (result,) = output.to_framework([our_detections(rois, detector, 0.0)])
        assert len(result.pred_instances) == 0 and "bboxes" in result.pred_instances
        if detector.has_masks:
            assert output.masks()[0].shape == (0, 28, 28)


@pytest.mark.parametrize(
    "name",
    [
        "class-agnostic",
        "hybrid, semantic",
        "ResNeXt, no masks",
        "convolutions",
        "cascade with convolutions",
        "convolutions of the classifier",
        "double head",
    ],
)
def test_layers_give_the_logits(specs, name):
    assert_layers_give_logits(load_detector(specs(name)), make_images((96, 96)))


@pytest.mark.parametrize("name", ["cosine", "seesaw"])
def test_classifiers_that_are_not_linear_have_no_layers(specs, name):
    detector = load_detector(specs(name))
    (rois,) = detector.forward(make_images((96, 96)), "embedding").rois
    assert rois.features.shape[1:] == (1, 48) and rois.logits.shape[2] == CLASSES + 1
    assert detector.fc_layers("pooled") == detector.fc_layers("embedding") == []


def test_pooled_features_after_convolutions(specs):
    images = make_images((96, 96))
    for name in ("convolutions", "cascade with convolutions", "convolutions of the classifier"):
        detector = load_detector(specs(name))
        (rois,), (none,) = (detector.forward(images, "pooled", select).rois for select in (None, select_none))
        assert detector.description["pooled_after_convolutions"]
        assert rois.features.shape[2:] == none.features.shape[2:] == (24, 7, 7)
    detector = load_detector(specs("double head"))
    (rois,) = detector.forward(images, "pooled").rois
    assert rois.features.shape[2:] == (CHANNELS, 7, 7) and "pooled_after_convolutions" not in detector.description


def test_a_score_of_zero_stays_zero(specs):
    detector = load_detector(specs("seesaw"))
    nn.init.normal_(detector.model.roi_head.bbox_head.fc_cls.weight, std=50)
    (rois,) = detector.forward(make_images((96, 96)), "logits").rois
    assert np.isfinite(rois.logits).all() and (Original.from_description(detector.description).scores(rois) == 0).any()


def test_masks_are_the_mean_of_the_stages(specs):
    for name in ("class-agnostic", "cascade", "hybrid, semantic"):
        detector = load_detector(specs(name))
        assert detector.has_masks and detector.description["class_agnostic_masks"]
        output = detector.forward(make_images((96, 144), (96, 144)), "logits")
        rois, masks = output.rois[1], output.masks()[1]
        head = detector.model.roi_head.mask_head
        last = head[-1] if isinstance(head, nn.ModuleList) else head
        with patch.object(last, "predict_by_feat", return_value=[None]) as paste:
            output.features.image(1).predict_masks(InstanceData(bboxes=torch.from_numpy(rois.boxes) / output.scales[1]))
        (expected,) = paste.call_args.kwargs["mask_preds"]
        expected = expected[:, 0] if name != "class-agnostic" else expected[:, 0].sigmoid()
        assert masks.dtype == np.uint8 and masks.shape == (len(rois), 28, 28)
        np.testing.assert_allclose(masks / 255, expected, atol=0.5 / 255 + 1e-4)
    assert not load_detector(specs("class-specific")).has_masks


def test_description(specs):
    described = load_detector(specs("hybrid")).description
    assert described["name"] == "tiny" and described["framework"] == "mmdet" and described["nms_iou"] == 0.5
    assert described["activation"] == "softmax" and described["stage_average"] == "logits"
    assert described["class_agnostic_boxes"] and len(described["weights_sha256"]) == 64
    assert load_detector(specs("hybrid")).device == torch.device("cpu")
    assert load_detector(specs("hybrid")).stages == (0.5, 0.6, 0.7)
    assert load_detector(specs("cosine")).stages == (0.5,), "without train_cfg"
    assert load_detector(specs("hybrid")).size == (112, 160)
    stages = replace(specs("hybrid"), detector_options=("model.train_cfg.rcnn.1.assigner.pos_iou_thr=0.65",))
    assert load_detector(stages).stages == (0.5, 0.65, 0.7)


def test_settings_are_those_of_the_config(specs):
    spec = specs("class-agnostic")
    settings = load_detector(spec).description["settings"]
    assert settings == {
        "input_size": [112, 160],
        "pixel_mean": [123.7, 116.3, 103.5],
        "pixel_std": [58.4, 57.1, 57.4],
        "channel_order": "RGB",
        "options": [],
    }
    options = ("test_dataloader.dataset.pipeline.1.scale=(200,100)", "model.data_preprocessor.bgr_to_rgb=False")
    changed = load_detector(replace(spec, detector_options=options)).description["settings"]
    assert changed == {**settings, "input_size": [100, 200], "channel_order": "BGR", "options": [*options]}


def test_checkpoints_of_training(specs, tmp_path, caplog):
    spec = specs("hybrid, semantic")
    state = torch.load(spec.weights)["state_dict"]
    averaged = {"steps": torch.tensor(3), **{f"module.{key}": value + 1 for key, value in state.items()}}
    twins = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in state.items()}
    contents = {
        "3.x": {"meta": {"epoch": 1}, "state_dict": state, "ema_state_dict": averaged, "optimizer": {"state": {}}},
        "2.x": {"meta": {"CLASSES": ("a",)}, "state_dict": {**state, **twins}},
    }
    expected = load_detector(spec).description["tensors_sha256"]
    for version, content in contents.items():
        torch.save(content, tmp_path / f"{version}.pth")
        found = load_detector(replace(spec, weights=tmp_path / f"{version}.pth")).description
        assert found["tensors_sha256"] == expected
    assert "not those under ema_state_dict" in caplog.text
    assert f"{len(twins)} of {len(state) + len(twins)} tensors are left out" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."])
def test_offsets_of_deformable_convolutions_of_mmdetection_1(prefix, tmp_path):
    model = nn.ModuleDict({"layer": nn.ModuleDict({"conv2": ModulatedDeformConv2dPack(4, 4, 3)})})
    state = {key: torch.rand_like(value) for key, value in model.state_dict().items()}
    old = {prefix + key.replace("conv2.conv_offset", "conv2_offset"): value for key, value in state.items()}
    assert f"{prefix}layer.conv2_offset.weight" in old
    for content in (old, {"meta": {}, "state_dict": old}):
        torch.save(content, tmp_path / "old.pth")
        load_weights(model, tmp_path / "old.pth", convert_names)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.save(state, tmp_path / "new.pth")
    load_weights(model, tmp_path / "new.pth", convert_names)


def test_a_semantic_branch_that_the_config_lacks_is_left_out(specs, caplog):
    load_detector(replace(specs("hybrid"), weights=specs("hybrid, semantic").weights))
    assert "tensors are left out, which inference with this model does not use, such as roi_head.sem" in caplog.text


def test_config_sha256_depends_on_what_changes_the_output(specs):
    spec = specs("class-agnostic")

    def digest(*options: str) -> str:
        return load_detector(replace(spec, detector_options=options)).description["config_sha256"]

    assert digest() == digest("optimizer.lr=0.1") == digest("model.backbone.init_cfg.checkpoint=elsewhere.pth")
    assert digest() != digest("model.test_cfg.rpn.max_per_img=50")
    assert digest() != digest("test_dataloader.dataset.pipeline.1.scale=(200,100)")


def test_options_are_mmdetections_own(specs):
    options = ("model.test_cfg.rpn.max_per_img=7", "test_dataloader.dataset.pipeline.1.scale=(200,100)")
    detector = load_detector(replace(specs("cascade"), detector_options=options))
    assert len(detector.forward(make_images((96, 96)), "logits").rois[0]) == 7 and detector.size == (100, 200)


def test_resized_shares_the_weights(specs):
    detector = load_detector(specs("cascade"))
    other = detector.resized(100, 200)
    assert other.model is detector.model and other.size == (100, 200) and detector.size == (112, 160)
    sizes = [one.description["settings"]["input_size"] for one in (detector, other)]
    assert sizes == [[112, 160], [100, 200]]
    option = "test_dataloader.dataset.pipeline.1.scale=(200,100)"
    same = load_detector(replace(specs("cascade"), detector_options=(option,)))
    image = make_images((96, 144))
    (rois,), (expected,), (before,) = (d.forward(image, "logits").rois for d in (other, same, detector))
    np.testing.assert_allclose(rois.boxes, expected.boxes, atol=1e-3)
    assert not np.allclose(rois.boxes[:20], before.boxes[:20], atol=0.1)


def test_selection_is_applied(specs):
    detector = load_detector(specs("hybrid, semantic"))
    assert_selection_is_applied(detector)
    (rois,) = detector.forward(make_images((96, 144)), "pooled").rois
    assert np.abs(np.diff(rois.proposals, axis=1)).max() > 1, "stages refine the proposals"


@pytest.fixture(scope="module")
def caches(tiny, tmp_path_factory):
    """Split → cache of the tiny dataset by a cascade with a semantic branch, its annotations, and its config."""
    folder = tmp_path_factory.mktemp("mmdet_caches")
    spec = write_spec(folder, hybrid(TINY_CLASSES))
    caches = {}
    for split in ("train", "val"):
        changes = {"detector": "mmdet", "config_file": spec.config_file, "weights": spec.weights}
        config = tiny.config(split, folder / f"{split}.zarr", detector_options=(), proposals=20, **changes)
        caches[split] = extract.run(config), read_annotations(config.annotations), config
    return caches


def test_caches_hold_the_features_of_each_stage(caches):
    for cache, *_ in caches.values():
        assert cache.stages == (0.5, 0.6, 0.7) and cache.fields
        assert 0 < worst_logit_error(cache) < LOGIT_TOLERANCE
    cache, annotations, config = caches["val"]
    detector, image_id = load_detector(config), int(annotations.image_ids[0])
    stored = cache.image(image_id)
    assert stored.masks is not None and not np.allclose(stored.features[:, 0], stored.features[:, 1], atol=0.1)
    detector.model.roi_head.semantic_fusion = ()
    pixels = read_image(config.images, annotations.file_names[0], (112, 112))
    (bare,) = detector.forward([Image(image_id, pixels)], "pooled").rois
    assert not np.allclose(bare.features[:20, 0], stored.features[:, 0], atol=0.05), "the semantic branch adds to it"


def test_labels_of_each_stage_are_by_its_own_iou(caches):
    cache, annotations, _ = caches["train"]
    differ = 0
    for position, rois in enumerate(cache):
        of = annotations.image_slice(position)
        gt = GroundTruth(annotations.boxes[of], annotations.labels[of], annotations.ids[of], annotations.crowd[of])
        for stage, iou in enumerate(cache.stages):
            np.testing.assert_allclose(rois.proposals[rois.is_gt, stage], annotations.boxes[of], atol=1e-3)
            assert rois.gt_ids[rois.is_gt, stage].tolist() == annotations.ids[of].tolist()
            labels, ious, _ = match(rois.proposals[:, stage], gt, iou, cache.num_classes)
            np.testing.assert_allclose(ious, rois.ious[:, stage], atol=1e-4)
            np.testing.assert_array_equal(labels, rois.labels[:, stage])
        differ += (rois.labels[:, 0] != rois.labels[:, 2]).sum()
    assert differ > 0


def test_a_changed_config_is_refused_on_resume(caches):
    config = caches["train"][2]
    assert extract.run(config).stages == (0.5, 0.6, 0.7)
    config.config_file.write_text(config.config_file.read_text().replace("'nms_pre': 200", "'nms_pre': 100"))
    with pytest.raises(ValueError, match="made with other options: detector.config_sha256"):
        extract.run(config)


def per_class_nms(boxes: np.ndarray, scores: np.ndarray, limit: int) -> ImageDetections:
    """The definition: torchvision's NMS of each class by itself, then the best of all."""
    boxes, scores = torch.from_numpy(boxes), torch.from_numpy(scores[:, :-1])
    kept = [(roi, label) for label in range(scores.shape[1]) for roi in nms(boxes, scores[:, label], 0.5).tolist()]
    roi, label = torch.tensor([(r, c) for r, c in kept if scores[r, c] > 0]).T
    order = torch.argsort(scores[roi, label], descending=True, stable=True)[:limit]
    return ImageDetections(boxes[roi[order]].numpy(), label[order].numpy(), scores[roi[order], label[order]].numpy())


def test_nms_of_1230_classes_is_exact(tmp_path):
    spec = write_spec(tmp_path, mask_rcnn(1230))
    detector = load_detector(spec)
    (rois,) = detector.forward(make_images((96, 144)), "logits").rois
    expected = per_class_nms(rois.boxes, Original.from_description(detector.description).scores(rois), 300)
    assert_same_detections(our_detections(rois, detector, 0.0), expected, box=0, score=0)


def test_class_offsets_make_mmcvs_nms_inexact():
    """mmcv shifts each class's boxes by an offset in float32: at class 1,229 this rounds by a hundredth of a pixel."""
    boxes = np.float32([[0, 0, 100, 100], [0, 0, 100, 50.003]])  # IoU just above 0.5
    scores = np.zeros((2, 1231), np.float32)
    scores[:, 1229] = 0.9, 0.8
    assert per_class_nms(boxes, scores, 300).scores.tolist() == pytest.approx([0.9])
    assert class_nms(boxes, scores)[2].tolist() == pytest.approx([0.9])
    theirs, _ = multiclass_nms(*map(torch.from_numpy, (boxes, scores)), 0.0, {"type": "nms", "iou_threshold": 0.5}, 300)
    assert len(theirs) == 2


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # training's
def test_checkpoints_of_mmengines_runner_load(tiny, tmp_path, monkeypatch):
    from mmengine.config import Config
    from mmengine.runner import Runner

    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    path = write_config(tmp_path / "tiny.py", cascade(TINY_CLASSES))
    data = {
        "type": "CocoDataset",
        "ann_file": str(tiny.data / "train.json"),
        "data_prefix": {"img": str(tiny.data / "train")},
        "metainfo": {"classes": read_annotations(tiny.data / "train.json").classes["name"].tolist()},
        "pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
            {"type": "PackDetInputs"},
        ],
    }
    runner = Runner(
        Config.fromfile(str(path)).model,
        str(tmp_path / "run"),
        train_dataloader={
            "batch_size": 2,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": data,
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": 1},
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}},
        default_scope="mmdet",
        log_level="ERROR",
        randomness={"seed": 0},
    )
    runner.train()
    for handler in runner.logger.handlers:
        handler.close()
    saved = torch.load(tmp_path / "run/iter_1.pth", weights_only=False)
    assert {"meta", "message_hub", "optimizer", "state_dict"} <= saved.keys()
    assert type(saved["message_hub"]["log_scalars"]["train/loss"]).__name__ == "HistoryBuffer"
    detector = load_detector(DetectorSpec("mmdet", tmp_path / "run/iter_1.pth", path, device="cpu"))
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(detector.model.state_dict()[name], value)


def test_another_scope_is_left_as_it_was(specs):
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("elsewhere"):
        for _ in range(2):
            detector = load_detector(specs("class-agnostic"))
            assert len(detector.forward(make_images((96, 96)), "logits").rois[0])
        assert DefaultScope.get_current_instance().scope_name == "elsewhere"


RETINA = {"type": "RetinaHead", "num_classes": 3, "in_channels": CHANNELS}
WRONG = {
    "no model": ({"default_scope": "mmdet"}, "has no attribute 'model'"),
    "unknown type": (
        changed(mask_rcnn(), model__roi_head__bbox_head__type="NoSuchHead"),
        "NoSuchHead is not in the mmdet::model registry",
    ),
    "unknown argument": (changed(mask_rcnn(), model__neck__colour="red"), "unexpected keyword argument 'colour'"),
    "one stage": (
        {
            "model": {"type": "RetinaNet", "bbox_head": RETINA}
            | {key: mask_rcnn()["model"][key] for key in ("backbone", "neck")},
            "test_dataloader": mask_rcnn()["test_dataloader"],
        },
        "model is a RetinaNet, expected TwoStageDetector",
    ),
    "branches": (
        changed(
            mask_rcnn(),
            model__roi_head__type="TridentRoIHead",
            model__roi_head__num_branch=3,
            model__roi_head__test_branch_idx=1,
        ),
        "model.roi_head is a TridentRoIHead, expected StandardRoIHead or DoubleHeadRoIHead or MaskScoringRoIHead",
    ),
    "no proposals": (changed(mask_rcnn(), model__rpn_head=None), "model.rpn_head is None, expected an RPN head"),
    "seesaw cascade": (cascade(**SEESAW), "bbox_head.loss_cls is a SeesawLoss, expected softmax scores in a cascade"),
    "no resize": (
        changed(mask_rcnn(), test_dataloader__dataset__pipeline=[{"type": "LoadImageFromFile"}]),
        "the test pipeline has 0 steps of type Resize",
    ),
    "NMS across classes": (
        changed(mask_rcnn(), model__test_cfg__rcnn__nms__class_agnostic=True),
        "model.test_cfg.rcnn.nms has class_agnostic True, expected NMS within each class",
    ),
    "NMS in whole pixels": (
        changed(mask_rcnn(), model__test_cfg__rcnn__nms__offset=1),
        "model.test_cfg.rcnn.nms has offset 1, expected 0",
    ),
    "no test pipeline": (changed(mask_rcnn(), test_dataloader={}), "has no attribute 'dataset'"),
}


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("name", ["class-agnostic", "class-specific"])
def test_threshold_and_limit_within_nms_are_those_of_fuse(specs, name, threshold, caplog):
    nms_threshold = "model.test_cfg.rcnn.nms.score_threshold=0.1", "model.test_cfg.rcnn.nms.max_num=40"
    spec = replace(specs(name), detector_options=nms_threshold)
    detector = load_detector(spec)
    assert thresholds_of(detector) == OwnThresholds(0.1, 40)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("extract")]
    stated = "which extraction does not apply: give"
    assert [m.partition(": rcnn.nms has ")[2] for m in messages if stated in m] == [
        f"score_threshold 0.1, {stated} --score-threshold 0.1 to fuse",
        f"max_num 40, {stated} --max-detections 40 to fuse",
    ]
    (image,) = make_images((96, 144))
    (theirs,) = reference(spec, [image], threshold)
    (rois,) = detector.forward([image], "logits").rois
    expected, _ = detector.to_arrays(theirs)
    assert len(expected.scores) == 40
    assert_same_detections(our_detections(rois, detector, 0.1, max_detections=40), expected)


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("nms.type=soft_nms", ": NMS at IoU 0.5 replaces the config's soft_nms"),
        ("mask_thr_binary=0.3", ": masks in a cache are cut at 0.5, not at the config's mask_thr_binary 0.3"),
        ("nms.split_thr=5", None),
        ("max_per_img=-1", None),
    ],
)
def test_other_inference_than_the_configs_is_said(specs, option, difference, caplog):
    detector = load_detector(replace(specs("class-agnostic"), detector_options=(f"model.test_cfg.rcnn.{option}",)))
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("extract")]
    assert [m.endswith(difference) for m in messages] == ([True] if difference else [])
    assert thresholds_of(detector) == OwnThresholds(0.0, None if "-1" in option else 300)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_configs(tmp_path, name):
    config, message = WRONG[name]
    path = write_config(tmp_path / "wrong.py", config)
    assert_one_line(DetectorSpec("mmdet", tmp_path / "w.pth", path, device="cpu"), f"{path}: ", message)


def assert_one_line(spec: DetectorSpec, *parts: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_detector(spec)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and all(part in text for part in parts), text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that mmengine leaves open
def test_wrong_files_and_options(specs, tmp_path):
    spec = specs("class-agnostic")
    broken = tmp_path / "broken.py"
    broken.write_text("model = dict(\n")
    assert_one_line(replace(spec, config_file=broken), str(broken), "not a config that mmengine can read")
    broken.write_text("_base_ = './nowhere.py'\n")
    assert_one_line(replace(spec, config_file=broken), str(broken), "nowhere.py")
    assert_one_line(replace(spec, config_file=tmp_path / "none.py"), "none.py: no such config file")
    assert_one_line(replace(spec, weights=tmp_path / "none.pth"), "none.pth: no such weights file")
    assert_one_line(replace(spec, config_file=None), "give its --config-file")
    assert_one_line(replace(spec, weights=None), "give its --weights")
    assert_one_line(replace(spec, detector="mmdet:a:b"), "mmdet:a:b: expected mmdet alone")
    assert_one_line(replace(spec, detector_options=("model.neck",)), "option 'model.neck', expected KEY=VALUE")
    into_list = replace(specs("cascade"), detector_options=("model.roi_head.bbox_head.x.y=1",))
    assert_one_line(into_list, "bbox_head.x.y=1', expected KEY=VALUE of")
    assert_one_line(replace(spec, detector_options=("model.test_cfg.rcnn=3",)), str(spec.config_file), "'nms'")
    other = replace(spec, weights=specs("cascade").weights)
    lacks, has = "weights of another model: lacks roi_head.bbox_head.fc_cls.weight", "; has roi_head.bbox_head.0"
    assert_one_line(other, str(other.weights), lacks, has)


def test_a_loss_whose_scores_do_not_sum_to_one_is_refused(tmp_path):
    from mmdet.registry import MODELS

    @MODELS.register_module(force=True)
    class IndependentScores(nn.Module):
        custom_cls_channels = custom_activation = custom_accuracy = True

        def get_cls_channels(self, classes: int) -> int:
            return classes + 1

        def get_activation(self, scores: torch.Tensor) -> torch.Tensor:
            return scores.sigmoid()

    path = write_config(tmp_path / "wrong.py", mask_rcnn(loss_cls={"type": "IndependentScores"}))
    message = "loss_cls is a IndependentScores, expected scores of K classes and background that sum to 1"
    assert_one_line(DetectorSpec("mmdet", tmp_path / "w.pth", path), message)
