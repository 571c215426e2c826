"""A Mask R-CNN R50-FPN of each framework with LVIS's number of classes and random weights, and heads for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from calib.heads import Head, HeadInfo
from calib.scoring import Level
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.detectors.base import Detector, Image
from fuse.defaults import MAX_DETECTIONS

NUM_CLASSES = 1230
LOGIT_DEVIATION, BACKGROUND_LOGIT = 2.5, 13.0


class Subject(NamedTuple):
    """A detector under test.

    Attributes:
        detector: the library's adapter.
        classifier: the framework's own classifier, (K+1, C).
        background: index of background among its outputs.
        infer: the framework's own inference on an (H, W, 3) uint8 RGB image at a score threshold.
    """

    detector: Detector
    classifier: nn.Linear
    background: int
    infer: Callable[[np.ndarray, float], None]


def spread_scores(subject: Subject, image: np.ndarray) -> None:
    """Sets the classifier's weights so that its scores are peaked: few classes stand out, background most of all."""
    (rois,) = subject.detector.forward([Image(0, image)], "embedding").rois
    features = torch.as_tensor(rois.features)
    length = float(features.float().norm(dim=-1).mean())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(subject.classifier.weight, std=LOGIT_DEVIATION / length)
    nn.init.zeros_(subject.classifier.bias)
    subject.classifier.weight.data[subject.background] = 0
    subject.classifier.bias.data[subject.background] = BACKGROUND_LOGIT


def make_head(detector: Detector, head_type: str) -> Head:
    """Builds a head of the detector's sizes, with the detector's own weights: only its cost matters here."""
    level: Level = "pooled" if head_type == "3fc_ft" else "embedding"
    (layers,) = detector.fc_layers(level)
    kept = layers if head_type == "3fc_ft" else layers[-1:]
    widths = (kept[0][0].shape[1], *(len(bias) for _, bias in kept))
    (rois,) = detector.forward([Image(0, np.zeros((64, 64, 3), np.uint8))], level).rois
    head = Head(
        HeadInfo(
            kind=head_type,
            level=level,
            feature_shape=tuple(torch.as_tensor(rois.features).shape[2:]),
            widths=widths,
            frozen_layers=0,
            category_ids=tuple(range(NUM_CLASSES)),
            names=tuple(map(str, range(NUM_CLASSES))),
            instance_counts=tuple(range(NUM_CLASSES)),
            stages=detector.stages,
            stage_average=detector.description["stage_average"],
            detector=detector.description["name"],
            weights_sha256=detector.description["weights_sha256"],
        )
    )
    with torch.no_grad():
        for linear, (weight, bias) in zip((m for m in head.modules() if isinstance(m, nn.Linear)), kept, strict=True):
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
    return head.eval()


def torchvision_subject(device: str) -> Subject:
    """Builds torchvision's `maskrcnn_resnet50_fpn`."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    from extract.detectors.torchvision import TorchvisionDetector
    from extract.utils.devices import resolve_device

    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    model.roi_heads.detections_per_img = MAX_DETECTIONS
    detector = TorchvisionDetector(model.to(resolve_device(device)))

    def infer(image: np.ndarray, threshold: float) -> None:
        model.roi_heads.score_thresh = threshold
        with torch.inference_mode():
            model([torch.from_numpy(image).to(detector.device).permute(2, 0, 1).float() / 255])

    return Subject(detector, model.roi_heads.box_predictor.cls_score, 0, infer)


def detectron2_subject(device: str) -> Subject:
    """Builds detectron2's model from its LVIS v0.5 config."""
    from detectron2 import model_zoo
    from detectron2.config import get_cfg
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    options = {"MODEL.DEVICE": device, "MODEL.PIXEL_STD": [3e4] * 3, "TEST.DETECTIONS_PER_IMAGE": MAX_DETECTIONS}
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    torch.manual_seed(0)
    weights = {"model": build_model(cfg).state_dict()}
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    detector = _load("detectron2", cfg.dump(), ".yaml", weights, device)
    model: Any = detector.model  # type: ignore[attr-defined]

    def infer(image: np.ndarray, threshold: float) -> None:
        model.roi_heads.box_predictor.test_score_thresh = threshold
        with torch.inference_mode():
            resized = resize.get_transform(image).apply_image(image).astype("float32")
            tensor = torch.as_tensor(resized.transpose(2, 0, 1))
            model([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])

    return Subject(detector, model.roi_heads.box_predictor.cls_score, NUM_CLASSES, infer)


def mmdet_subject(device: str) -> Subject:
    """Builds mmdetection's model from its LVIS v1 config."""
    from benchmarks import mmcv_ext

    mmcv_ext.install()
    import mmdet
    from mmdet.apis import inference_detector
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    cfg = Config.fromfile(configs / "lvis" / "mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py")
    cfg.model.backbone.init_cfg = None
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = NUM_CLASSES
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        weights = {"state_dict": MODELS.build(cfg.model).state_dict()}
    detector = _load("mmdet", cfg.pretty_text, ".py", weights, device)
    model: Any = detector.model  # type: ignore[attr-defined]

    def infer(image: np.ndarray, threshold: float) -> None:
        model.cfg = cfg
        model.roi_head.test_cfg.score_thr, model.roi_head.test_cfg.max_per_img = threshold, MAX_DETECTIONS
        with DefaultScope.overwrite_default_scope("mmdet"):
            inference_detector(model, image)

    return Subject(detector, model.roi_head.bbox_head.fc_cls, NUM_CLASSES, infer)


def _load(framework: str, config_text: str, suffix: str, checkpoint: dict[str, Any], device: str) -> Detector:
    """Loads a detector as a user does, from a config file and a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        config_file, weights = Path(folder, f"model{suffix}"), Path(folder, "model.pth")
        config_file.write_text(config_text)
        torch.save(checkpoint, weights)
        return load_detector(DetectorSpec(framework, weights, config_file, device=device))


BUILDERS = {"torchvision": torchvision_subject, "detectron2": detectron2_subject, "mmdet": mmdet_subject}
