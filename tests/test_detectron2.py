"""The detectron2 adapter: with the original head, our detections are detectron2's own."""

from __future__ import annotations

import builtins
import functools
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import nms

import extract
from extract.__main__ import COMMANDS
from extract.config import DetectorSpec
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from extract.detectors import load_detector, registered_dataset
from extract.detectors.base import Image, ImageDetections
from extract.matching import GroundTruth, match
from extract.utils.cli import run as run_command
from extract.verify import forward as layers_forward
from extract.verify import worst_logit_error
from fuse import class_nms
from tests.conftest import CLASSES as TINY_CLASSES
from tests.exactness import assert_same_detections, make_images, our_detections

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # detectron2 scripts at import
    pytest.importorskip("detectron2.modeling")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.engine import DefaultPredictor
    from detectron2.modeling import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, StandardROIHeads, build_model
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
    from detectron2.structures import Boxes, Instances

    from extract.detectors.detectron2 import Detectron2Detector

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # detectron2's anchors
CLASSES = 20
SIZE = (96, 144)
PROJECT = "tests.test_detectron2:extend"
FEDERATED = "test_detectron2_federated"


class CosinePredictor(FastRCNNOutputLayers):
    """Scores are scaled cosines of the embedding and each class's weights."""

    def forward(self, x):
        scores = nn.functional.normalize(x) @ nn.functional.normalize(self.cls_score.weight).T
        return self.scale * scores, self.bbox_pred(x)


class CosineROIHeads(StandardROIHeads):
    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = CosinePredictor(cfg, parts["box_head"].output_shape)
        parts["box_predictor"].scale = cfg.MODEL.COSINE_SCALE
        return parts


class OddROIHeads(StandardROIHeads):
    def _forward_box(self, features, proposals):
        raise NotImplementedError


def extend(cfg: CfgNode) -> None:
    """What a project of its own adds: RoI heads, a key, and a data set whose counts a federated loss reads."""
    MetadataCatalog.get(FEDERATED).class_image_count = [{"id": i + 1, "image_count": i + 1} for i in range(CLASSES)]
    cfg.MODEL.COSINE_SCALE = 20.0
    for heads in (CosineROIHeads, OddROIHeads):
        if heads.__name__ not in ROI_HEADS_REGISTRY:
            ROI_HEADS_REGISTRY.register(heads)


SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_STD": [3e4] * 3,  # random weights under frozen batch normalisation make activations grow
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 48,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "TEST.DETECTIONS_PER_IMAGE": 300,
    "INPUT.MIN_SIZE_TEST": 128,
    "INPUT.MAX_SIZE_TEST": 180,
}
FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [24], [32], [64], [96]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
}
AGNOSTIC = FPN | {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True}
KINDS = {
    "class-agnostic": AGNOSTIC,
    "class-specific": FPN
    | {
        "INPUT.FORMAT": "RGB",
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [8],
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 3,
    },
    "c4": {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32, 64]],
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    },
    "cascade": AGNOSTIC | {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"},
    "sigmoid": AGNOSTIC
    | {
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True,
        "DATASETS.TRAIN": (FEDERATED,),
    },
    "cosine": AGNOSTIC | {"MODEL.ROI_HEADS.NAME": "CosineROIHeads"},
    "many classes": AGNOSTIC | {"MODEL.ROI_HEADS.NUM_CLASSES": 1230, "MODEL.MASK_ON": False},
}
LAZY = """
from pathlib import Path
import detectron2
from detectron2.config import LazyConfig

stock = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "common"
model = LazyConfig.load(str(stock / "models" / "mask_rcnn_fpn.py"), "model")
dataloader = LazyConfig.load(str(stock / "data" / "coco.py"), "dataloader")
train = {{"init_checkpoint": "{weights}"}}
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages.stride_in_1x1
model.backbone.out_channels = model.proposal_generator.head.in_channels = 32
model.roi_heads.box_head.input_shape.channels = model.roi_heads.mask_head.input_shape.channels = 32
model.roi_heads.box_head.fc_dims = [64, 64]
model.roi_heads.box_predictor.input_shape.channels = 64
model.roi_heads.box_predictor.test_topk_per_image = 300
model.roi_heads.mask_head.conv_dims = [16, 16]
model.roi_heads.num_classes = 20
model.pixel_std = [3e4, 3e4, 3e4]
model.proposal_generator.anchor_generator.sizes = [[16], [24], [32], [64], [96]]
model.proposal_generator.post_nms_topk = [60, 60]
dataloader.test.mapper.augmentations[0].update(short_edge_length=128, max_size=180)
"""
ALL = [*KINDS, "lazy"]


@dataclass(frozen=True)
class Made:
    """A random detector as its files, and the framework's own way to run them."""

    spec: DetectorSpec
    predictor: LazyPredictor | DefaultPredictor

    def at(self, threshold: float) -> Made:
        """The framework's with another score threshold."""
        found = self.predictor.model.roi_heads.box_predictor
        for predictor in found if isinstance(found, nn.ModuleList) else [found]:
            predictor.test_score_thresh = threshold
        return self

    def detections(self, image: Image) -> ImageDetections:
        """The framework's, before it leaves out boxes without area, in pixels of the image."""
        with torch.no_grad():
            pixels = image.pixels[:, :, ::-1] if self.predictor.input_format == "BGR" else image.pixels
            resized = self.predictor.aug.get_transform(pixels).apply_image(pixels)
            tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
            (found,) = self.predictor.model.inference([{"image": tensor}], do_postprocess=False)
        height, width = (o / r for o, r in zip(image.pixels.shape, found.image_size, strict=False))
        boxes = found.pred_boxes.tensor * torch.tensor([width, height, width, height])
        return ImageDetections(boxes.numpy(), found.pred_classes.numpy(), found.scores.numpy())

    def to_framework(self, image: Image) -> Instances:
        """What the framework's predictor returns."""
        return self.predictor(image.pixels[:, :, ::-1])["instances"]


class LazyPredictor(DefaultPredictor):
    """`DefaultPredictor` of a LazyConfig."""

    def __init__(self, file: Path):
        cfg = LazyConfig.load(str(file))
        self.model = instantiate(cfg.model).eval()
        DetectionCheckpointer(self.model).load(cfg.train.init_checkpoint)
        (self.aug,) = instantiate(cfg.dataloader.test.mapper.augmentations)
        self.input_format = cfg.dataloader.test.mapper.image_format
        self.cfg = get_cfg()
        self.cfg.MODEL.DEVICE = "cpu"


def yacs(options: dict) -> CfgNode:
    cfg = get_cfg()
    extend(cfg)
    cfg.merge_from_list([part for pair in (SMALL | options).items() for part in pair])
    return cfg


def spread(layer: nn.Linear, inputs: tuple, outputs: torch.Tensor, std: float) -> torch.Tensor:
    """Scales and shifts a layer so that its outputs differ from RoI to RoI by `std`, around 0."""
    scale = std / outputs.std(0).mean()
    layer.bias.copy_((layer.bias - outputs.mean(0)) * scale)
    layer.weight.mul_(scale)
    return layer.forward(*inputs)


def save_weights(build: Callable[[], nn.Module], folder: Path) -> Path:
    """Random weights whose scores and boxes differ from one another as trained ones do, by detectron2's own writer."""
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(1)
        model = build().eval()
        spreads = {"cls_score": 2.0, "bbox_pred": 1.0}
        for name, module in model.named_modules():
            if name.rsplit(".")[-1] in spreads:
                nn.init.normal_(module.weight)
                module.register_forward_hook(functools.partial(spread, std=spreads[name.rsplit(".")[-1]]))
        pixels = torch.from_numpy(make_images(SIZE)[0].pixels.transpose(2, 0, 1).astype(np.float32))
        model([{"image": pixels}])
    DetectionCheckpointer(model, str(folder)).save("model")
    return folder / "model.pth"


def make(kind: str, folder: Path, **options) -> Made:
    if kind == "lazy":
        file, weights = folder / "lazy.py", folder / "model.pth"
        file.write_text(LAZY.format(weights=weights))
        save_weights(lambda: instantiate(LazyConfig.load(str(file)).model), folder)
        return Made(DetectorSpec("detectron2", config_file=file, device="cpu"), LazyPredictor(file))
    cfg = yacs(KINDS[kind] | options)
    cfg.MODEL.WEIGHTS = str(save_weights(lambda: build_model(cfg), folder))
    file = folder / f"{kind}.yaml"
    file.write_text(cfg.dump())
    return Made(DetectorSpec(f"detectron2:{PROJECT}", config_file=file, device="cpu"), DefaultPredictor(cfg))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    yield functools.cache(lambda kind: make(kind, tmp_path_factory.mktemp("detectron2")))
    MetadataCatalog.pop(FEDERATED, None)


@pytest.fixture(scope="module")
def detector_of(made):
    return functools.cache(lambda kind: load_detector(made(kind).spec))


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("kind", ALL)
def test_detections_equal_detectron2s_own(kind, threshold, made, detector_of):
    detector, framework = detector_of(kind), made(kind).at(threshold)
    images = make_images(SIZE, SIZE)
    for image, rois in zip(images, detector.forward(images, "logits").rois, strict=True):
        theirs = framework.detections(image)
        assert len(theirs.scores) > 20
        assert_same_detections(our_detections(rois, detector, threshold), theirs)


@pytest.mark.parametrize("kind", ALL)
def test_results_are_what_the_predictor_returns(kind, made, detector_of):
    detector, framework = detector_of(kind), made(kind).at(0.2)
    images = make_images(SIZE, SIZE)
    forward = detector.forward(images, "logits")
    results = forward.to_framework([our_detections(rois, detector, 0.2) for rois in forward.rois])
    for image, result in zip(images, results, strict=True):
        ours, theirs = result["instances"], framework.to_framework(image)
        assert list(result) == ["instances"] and ours.get_fields().keys() == theirs.get_fields().keys()
        assert len(ours) == len(theirs) > 3 and ours.image_size == theirs.image_size == SIZE
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=5e-3, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        if ours.has("pred_masks"):
            assert theirs.pred_masks.any() and (ours.pred_masks == theirs.pred_masks).float().mean() > 0.9999
        if ours.has("pred_keypoints"):
            torch.testing.assert_close(ours.pred_keypoints, theirs.pred_keypoints, atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", ALL)
def test_features_lead_to_the_logits(kind, detector_of):
    detector = detector_of(kind)
    for level, depth in {"pooled": 3, "embedding": 1}.items():
        (rois,) = detector.forward(make_images(SIZE), level).rois
        assert rois.features.ndim == {"pooled": 5, "embedding": 3}[level]
        head = detector.fc_layers(level)
        if kind == "cosine" or (kind, level) == ("c4", "pooled"):  # not fully connected
            assert head == []
            continue
        assert len(head) == len(detector.stages) and {len(layers) for layers in head} == {depth}
        for stage, layers in enumerate(head):
            logits = rois.logits[:, stage]
            error = layers_forward(layers, rois.features[:, stage].numpy()) - logits
            assert np.abs(error).max() < 0.02 * np.abs(logits).max()
    assert detector.fc_layers("logits") == [] and detector.forward(make_images(SIZE), "logits").rois[0].features is None


def test_what_a_detector_says_of_itself(made, detector_of):
    for kind in ALL:
        detector = detector_of(kind)
        said = detector.description
        assert said["name"] == made(kind).spec.config_file.stem and said["framework"] == "detectron2"
        assert said["activation"] == ("sigmoid" if kind == "sigmoid" else "softmax") and said["nms_iou"] == 0.5
        assert detector.num_classes == (1230 if kind == "many classes" else CLASSES) and detector.size == (128, 180)
        assert detector.stages == ((0.5, 0.6, 0.7) if kind == "cascade" else (0.5,))
        specific = kind in ("class-specific", "lazy")
        assert said["class_agnostic_boxes"] != specific
        assert said["class_agnostic_masks"] == detector.has_masks == (not specific and kind != "many classes")
        assert not detector.model.training and not any(p.requires_grad for p in detector.model.parameters())


@pytest.mark.parametrize("kind", ["class-agnostic", "cascade", "c4"])
def test_masks_are_those_of_the_mask_head(kind, detector_of):
    detector = detector_of(kind)
    images = [replace(image, pixels=image.pixels[:96, :96]) for image in make_images(SIZE, SIZE)]
    forward = detector.forward(images, "logits")
    heads, boxes = detector.model.roi_heads, [Boxes(torch.from_numpy(r.boxes) * 128 / 96) for r in forward.rois]
    with torch.no_grad():
        resized = detector.model.preprocess_image([{"image": detector.to_tensor(image)} for image in images])
        features = detector.model.backbone(resized.tensor)
        maps = [features[f] for f in heads.in_features]
        pooled = heads._shared_roi_transform(maps, boxes) if kind == "c4" else heads.mask_pooler(maps, boxes)
        expected = heads.mask_head.layers(pooled)[:, 0].sigmoid()
    masks = np.concatenate(forward.masks())
    assert masks.dtype == np.uint8 and masks.std() > 0
    np.testing.assert_allclose(masks / 255, expected, atol=0.5 / 255 + 1e-4)


@pytest.mark.parametrize("kind", ["class-specific", "cascade", "c4"])
def test_added_boxes_come_last_and_stay_in_every_stage(kind, detector_of):
    detector = detector_of(kind)
    extra = np.float32([[10, 20, 60, 70]])
    (rois,) = detector.forward(make_images(SIZE), "pooled", lambda i, p: (np.arange(3)[::-1], extra)).rois
    (plain,) = detector.forward(make_images(SIZE), "pooled").rois
    assert rois.is_gt.tolist() == [False, False, False, True] and rois.objectness[3] == 1
    np.testing.assert_allclose(rois.proposals[3], np.repeat(extra, len(detector.stages), 0), atol=1e-4)
    for field in ("proposals", "boxes", "logits"):
        np.testing.assert_allclose(getattr(rois, field)[:3], getattr(plain, field)[:3][::-1], atol=1e-3)
    assert (np.diff(plain.objectness) <= 0).all() and 0 < plain.objectness.min() <= plain.objectness.max() < 1


@pytest.mark.parametrize("kind", ["class-specific", "cascade", "c4"])
def test_no_proposals_and_no_detections_at_all(kind, detector_of):
    detector = detector_of(kind)
    forward = detector.forward(make_images(SIZE), "pooled", lambda i, p: (np.empty(0, int), np.empty((0, 4))))
    (rois,) = forward.rois
    assert len(rois) == 0 and rois.boxes.shape == ((0, CLASSES, 4) if kind == "class-specific" else (0, 4))
    (result,) = forward.to_framework([our_detections(rois, detector, 0.0)])
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, *SIZE)
    if detector.has_masks:
        assert len(forward.masks()[0]) == 0


def test_stages_of_a_cascade_see_the_boxes_of_the_stage_before(detector_of):
    """The proposals of each stage and the logits there are those of detectron2's own stages."""
    detector = detector_of("cascade")
    heads, seen = detector.model.roi_heads, []
    (image,) = make_images(SIZE)
    handles = [p.register_forward_hook(lambda _, __, out: seen.append(out[0].numpy())) for p in heads.box_predictor]
    handles.append(heads.box_pooler.register_forward_pre_hook(lambda _, args: seen.append(args[1][0].tensor.numpy())))
    with torch.no_grad():
        detector.model.inference([{"image": detector.to_tensor(image)}])
    for handle in handles:
        handle.remove()
    (rois,) = detector.forward([image], "logits").rois
    scale = np.float32([144 / 180, 96 / 120] * 2)
    np.testing.assert_allclose(rois.proposals, np.stack(seen[0::2], 1) * scale, atol=2e-3)
    np.testing.assert_allclose(rois.logits, np.stack(seen[1::2], 1), atol=2e-3)


def test_suppression_is_exact_where_class_offsets_are_not():
    """detectron2 shifts boxes by their class's offset in float32; among 1,230 classes that moves them by a sixteenth
    of a pixel, and decides about neighbours whose IoU is close to the threshold."""
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


def test_resized_shares_the_weights_and_sees_other_sizes(made, detector_of):
    detector = detector_of("class-agnostic")
    other = detector.resized(160, 300)
    assert other.model is detector.model and detector.size == (128, 180) and other.size == (160, 300)
    options = ("INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "300")
    configured = load_detector(replace(made("class-agnostic").spec, detector_options=options))
    images = make_images(SIZE)
    (rois,), (expected,) = (d.forward(images, "logits").rois for d in (other, configured))
    np.testing.assert_allclose(rois.boxes, expected.boxes, atol=1e-4)
    assert not np.allclose(rois.boxes[:20], detector.forward(images, "logits").rois[0].boxes[:20], atol=0.1)


def test_weights_of_the_model_zoo(made, detector_of, tmp_path):
    spec, file = made("cascade").spec, tmp_path / "model_final.pkl"
    state = {key: value.numpy() for key, value in detector_of("cascade").model.state_dict().items()}
    state["pixel_mean"] = np.zeros((3, 1, 1), np.float32)  # older files hold it
    file.write_bytes(pickle.dumps({"model": state, "__author__": "test", "matching_heuristics": True}))
    images = make_images(SIZE)
    detectors = detector_of("cascade"), load_detector(replace(spec, weights=file))
    (rois,), (expected,) = (d.forward(images, "logits").rois for d in detectors)
    np.testing.assert_array_equal(rois.logits, expected.logits)
    assert detectors[0].description["weights_sha256"] != detectors[1].description["weights_sha256"]


def test_the_digest_of_the_config_follows_what_decides_the_outcome(made, tmp_path):
    def digest(kind: str, *options: str) -> str:
        return load_detector(replace(made(kind).spec, detector_options=options)).description["config_sha256"]

    plain = digest("class-agnostic")
    copied = tmp_path / "weights.pth"
    copied.write_bytes((made("class-agnostic").spec.config_file.parent / "model.pth").read_bytes())
    assert digest("class-agnostic", "MODEL.WEIGHTS", str(copied), "SEED", "3") == plain
    others = [("MODEL.RPN.NMS_THRESH", "0.6"), ("INPUT.MIN_SIZE_TEST", "100")]
    assert len({plain, *(digest("class-agnostic", *option) for option in others)}) == 3
    lazy = digest("lazy")
    assert digest("lazy") == lazy != digest("lazy", "model.proposal_generator.nms_thresh=0.6")


def test_the_digest_of_the_config_leaves_out_what_our_plugin_adds(made, monkeypatch):
    from detectron2.config import defaults

    digests = set()
    for method in ("one", "another"):
        monkeypatch.setitem(defaults._C.MODEL, "CALIBRATION", CfgNode({"METHOD": method}, new_allowed=True))
        digests.add(load_detector(made("class-agnostic").spec).description["config_sha256"])
    assert len(digests) == 1


def test_a_half_installed_framework_says_what_to_install(monkeypatch):
    for name in ("extract.detectors.detectron2", "extract.detectors.detectron2_config"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.raises(ImportError, match="^omegaconf is not installed; it is not on PyPI: install it") as error:
        load_detector(DetectorSpec("detectron2"))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny_cascade(tiny, tmp_path_factory) -> Made:
    """For the tiny data set's classes and images."""
    options = {"MODEL.ROI_HEADS.NUM_CLASSES": TINY_CLASSES, "INPUT.MIN_SIZE_TEST": 112, "INPUT.MAX_SIZE_TEST": 112}
    return make("cascade", tmp_path_factory.mktemp("tiny_cascade"), **options)


def tiny_config(tiny, cascade: Made, split: str, out: Path, **changes) -> extract.Config:
    spec = {"detector": cascade.spec.detector, "config_file": cascade.spec.config_file, "weights": None}
    return tiny.config(split, out, **(spec | {"detector_options": (), "level": "embedding"} | changes))


@pytest.mark.parametrize("split", ["train", "val"])
def test_cache_of_a_cascade(split, tiny, tiny_cascade, tmp_path):
    cache = extract.run(tiny_config(tiny, tiny_cascade, split, tmp_path / "cache", level="pooled", min_images_per_class=4))
    assert cache.stages == (0.5, 0.6, 0.7) and cache.fields["features"] == (3, 32, 7, 7)
    assert worst_logit_error(cache) < 5e-3
    annotations, later = read_annotations(tiny.data / f"{split}.json"), 0
    for rois in cache:
        position = int(np.searchsorted(annotations.image_ids, rois.image_id))
        of = annotations.image_slice(position)
        objects = (getattr(annotations, name)[of] for name in ("boxes", "labels", "ids", "crowd"))
        truth = GroundTruth(*objects, exhaustive=bool(annotations.exhaustive[position]))
        own = ~rois.is_gt
        assert rois.is_gt.sum() == (len(truth.ids) if split == "train" else 0)
        for stage, threshold in enumerate(cache.stages):
            labels, ious, _ = match(rois.proposals[:, stage], truth, threshold, TINY_CLASSES)
            np.testing.assert_allclose(rois.ious[:, stage], ious, atol=1e-3)
            clear = own & (np.abs(ious - threshold) > 1e-3)
            np.testing.assert_array_equal(rois.labels[clear, stage], labels[clear])
            if split == "train":
                np.testing.assert_allclose(rois.proposals[rois.is_gt, stage], truth.boxes, atol=1e-3)
                assert rois.labels[rois.is_gt, stage].tolist() == truth.labels.tolist()
        later += (rois.labels[own, 0] != rois.labels[own, 2]).sum()
    assert later > 0, "stages differ in what matches"


def test_val_cache_gives_detectron2s_own_detections(tiny, tiny_cascade, tmp_path):
    cache = extract.run(tiny_config(tiny, tiny_cascade, "val", tmp_path / "cache", proposals=1000, level="logits"))
    assert cache.fields["masks"] == (28, 28)
    framework, annotations = tiny_cascade.at(0.05), read_annotations(tiny.data / "val.json")
    detector = load_detector(tiny_cascade.spec)
    for position in (0, 5):
        pixels = read_image(tiny.data / "val", annotations.file_names[position], (112, 112))
        image = Image(int(annotations.image_ids[position]), pixels)
        ours = our_detections(cache.image(image.image_id), detector, 0.05)
        theirs = framework.detections(image)
        shared = min(len(ours.scores), len(theirs.scores)) - 3  # logits of a cache are half floats
        np.testing.assert_allclose(ours.scores[:shared], theirs.scores[:shared], atol=2e-3)


def test_a_changed_config_is_noticed(tiny, tiny_cascade, tmp_path):
    config = tiny_config(tiny, tiny_cascade, "val", tmp_path / "cache", min_images_per_class=1)
    extract.run(config)
    other = tmp_path / "cascade.yaml"
    other.write_text(f"_BASE_: {config.config_file}\nMODEL:\n  RPN:\n    NMS_THRESH: 0.65\n")
    with pytest.raises(extract.CacheError, match="made with other options: detector.config_sha256"):
        extract.run(replace(config, config_file=other))


def test_data_sets_by_name(tiny, tiny_cascade, tmp_path):
    """From the command line; the framework's own options follow the flags."""
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
        ("MODEL.ROI_HEADS.NAME OddROIHeads", "RoI heads are OddROIHeads, expected CascadeROIHeads with its own"),
        ("MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_HEADS.IOU_THRESHOLDS [0.4]", "assert cascade_ious"),
        ("MODEL.ROI_HEADS.NUM_CLASSES 7", "weights of another model: .* has shape .*, the model's"),
        ("INPUT.FORMAT L", "input format is 'L', expected 'BGR' or 'RGB'"),
        ("MODEL.WEIGHTS detectron2://a/model.pkl", "weights detectron2://a/model.pkl, expected a local file: download"),
        ("MODEL.WEIGHTS ", "names no weights .*: give --weights"),
        ("MODEL.WEIGHTS nowhere.pth", "nowhere.pth: no such weights file"),
    ],
)
def test_wrong_options_of_a_yaml(options, message, made):
    spec = replace(made("class-agnostic").spec, detector_options=tuple(options.split(" ")))
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
def test_wrong_options_of_a_lazy_config(options, message, made):
    spec = replace(made("lazy").spec, detector_options=(options,))
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


def test_a_predictor_with_scores_of_its_own_is_refused():
    model = build_model(yacs(KINDS["class-agnostic"]))
    model.roi_heads.box_predictor.predict_probs = lambda predictions, proposals: [predictions[0].softmax(1) ** 2]
    with pytest.raises(ValueError, match="neither softmax nor sigmoid of its logits"):
        Detectron2Detector(model, ResizeShortestEdge(128, 180))
