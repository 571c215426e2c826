"""mmdetection's configs: builds the model and test pipeline, and finds the matching IoUs of training.

Refuses models whose inference differs from the one that the adapter reproduces.
"""

from __future__ import annotations

import copy
import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import Compose, Resize
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    DoubleHeadRoIHead,
    HybridTaskCascadeRoIHead,
    MaskScoringRoIHead,
    StandardRoIHead,
)
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config, DictAction
from mmengine.model import BaseModule
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from extract.data.class_map import MIN_LOGIT
from extract.data.decoding import ImageReader
from extract.detectors.base import OwnThresholds
from extract.detectors.mmdet_images import image_reader

ROI_HEADS = (StandardRoIHead, DoubleHeadRoIHead, MaskScoringRoIHead, CascadeRoIHead, HybridTaskCascadeRoIHead)
_ROI_METHODS = ("predict", "predict_bbox", "predict_mask", "_bbox_forward", "_mask_forward")
INFERENCE_METHODS = {
    TwoStageDetector: ("predict",),
    **dict.fromkeys(ROI_HEADS[:3], _ROI_METHODS),
    **dict.fromkeys(ROI_HEADS[3:], (*_ROI_METHODS, "_refine_roi")),
    BBoxHead: ("predict_by_feat", "_predict_by_feat_single", "regress_by_class"),
}
"""Methods that the adapter replaces. A subclass must not override them; methods for training it may."""
DEFAULT_MATCHING_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the stages, for a config without `train_cfg`."""
NMS_OPTIONS = {
    "class_agnostic": "NMS within each class",
    "offset": "0: boxes of width x2 - x1",
}
"""Options of mmcv's NMS that must be off, and what is expected instead."""
OWN_OPTIONS = {"score_threshold": "--score-threshold", "max_num": "--max-detections"}
"""Options of mmcv's NMS → those of `python -m fuse` that do the same."""
MASK_THRESHOLD = 0.5
"""Probability from which a pixel is foreground, in `fuse.ops.masks`."""
SOFT_NMS_IOU = 0.3
"""Default of mmcv's soft-NMS."""


def read_config(path: Path, options: Sequence[str]) -> Config:
    """Reads the file and merges KEY=VALUE options into it, like mmdetection's --cfg-options."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is code
        raise ValueError(f"{path}: not a config that mmengine can read: {one_line(error)}") from error
    for option in options:
        parsed = Namespace()
        try:
            DictAction([], "options")(ArgumentParser(), parsed, [option])
            config.merge_from_dict(parsed.options)
        except Exception as error:  # mmengine asserts, indexes and unpacks
            raise ValueError(f"detector option {option!r}, expected KEY=VALUE of {path}: {one_line(error)}") from error
    return config


def build(config: Config) -> tuple[TwoStageDetector, Compose, ImageReader]:
    """Builds the model, without its trained weights, its test pipeline, which takes arrays, and its reader of files."""
    # The scope makes the registries independent of other frameworks and of models built before.
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet")):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
        steps = copy.deepcopy(get_test_pipeline_cfg(config))
        reader = image_reader(steps[0])
        steps[0].type = "mmdet.LoadImageFromNDArray"
        pipeline = Compose(steps)
    _check(model)
    return model, pipeline, reader


def list_stages(heads: nn.Module) -> list[BaseModule]:
    """Returns the heads of a cascade, or the one head of another model."""
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def matching_ious(train_cfg: dict[str, Any] | list[dict[str, Any]] | None, stages: int) -> tuple[float, ...]:
    """Returns the IoU from which proposals are foreground in the training of each stage."""
    configs = train_cfg if isinstance(train_cfg, list) else [train_cfg] * stages
    assigners = [(config or {}).get("assigner", {}) for config in configs]
    defaults = zip(assigners, DEFAULT_MATCHING_IOUS, strict=False)
    return tuple(float(assigner.get("pos_iou_thr", iou)) for assigner, iou in defaults)


def find_resize(pipeline: Compose) -> Resize:
    """Returns the only Resize of the test pipeline."""
    found = [step for step in pipeline.transforms if isinstance(step, Resize)]
    if len(found) != 1 or found[0].scale is None:
        raise ValueError(f"the test pipeline has {len(found)} steps of type Resize, expected one, with a scale")
    return found[0]


def normalisation(preprocessor: nn.Module) -> tuple[list[float], list[float], str]:
    """Returns mean and standard deviation of each channel, and the channels' order, of a `DetDataPreprocessor`."""
    mean, std = getattr(preprocessor, "mean", None), getattr(preprocessor, "std", None)  # absent without mean
    order = "RGB" if getattr(preprocessor, "_channel_conversion", False) else "BGR"
    return [] if mean is None else mean.flatten().tolist(), [] if std is None else std.flatten().tolist(), order


def nms_iou(nms: Mapping[str, Any] | None) -> float:
    """Returns the IoU threshold of `rcnn.nms`; 1 without it, since every box is kept."""
    if not nms:
        return 1.0
    return float(nms.get("iou_threshold", nms.get("iou_thr", SOFT_NMS_IOU)))


def own_thresholds(rcnn: Mapping[str, Any]) -> OwnThresholds:
    """Returns those of `test_cfg.rcnn` and its NMS together."""
    nms = rcnn.get("nms") or {}
    limits = [n for n in (rcnn.get("max_per_img"), nms.get("max_num")) if n and n > 0]  # mmcv takes -1 for no limit
    threshold = max(float(rcnn.get("score_thr") or 0), float(nms.get("score_threshold") or 0))
    return OwnThresholds(threshold, min(limits, default=None))


def inference_differences(roi_head: BaseModule, iou: float, cached_masks: bool) -> list[str]:
    """Describes how the results of a RoI head and its `test_cfg.rcnn` differ from ours, one line for each difference.

    `iou` is that of our NMS; `cached_masks` is whether masks are pasted from a cache.
    """
    rcnn: Mapping[str, Any] = roi_head.test_cfg
    nms, mask_threshold = rcnn.get("nms") or {}, rcnn.get("mask_thr_binary", MASK_THRESHOLD)
    kind = nms.get("type", "nms")
    kind = getattr(kind, "__name__", kind)  # configs in pure Python hold the function itself
    lines = [f"NMS at IoU {iou:g} replaces the config's {kind}"] if kind != "nms" else []
    values = {key: nms.get(key) or 0 for key in OWN_OPTIONS}
    if cached_masks and mask_threshold != MASK_THRESHOLD:
        expected = f"not at the config's mask_thr_binary {mask_threshold}"
        lines.append(f"masks in a cache are cut at {MASK_THRESHOLD}, {expected}")
    if isinstance(roi_head, MaskScoringRoIHead):
        lines.append("detections from a cache have class scores; only live ones are rescored by the mask_iou_head")
    return lines + [
        f"rcnn.nms has {key} {value}, which extraction does not apply: give {OWN_OPTIONS[key]} {value} to fuse"
        for key, value in values.items()
        if value > 0
    ]


def config_sha256(config: Config) -> str:
    """Hashes model and test pipeline, without the initial weights, which trained ones replace."""
    # Configs in pure Python hold classes where others hold their names.
    text = json.dumps([config.model, get_test_pipeline_cfg(config)], default=lambda v: getattr(v, "__name__", str(v)))
    initial = ("pretrained", "init_cfg")
    tree = json.loads(text, object_hook=lambda part: {k: v for k, v in part.items() if k not in initial})
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def logits_of(head: BBoxHead, scores: Tensor) -> Tensor:
    """Converts the output of a box head to logits (R, K+1) whose softmax is the class scores."""
    custom = head.custom_cls_channels
    return head.loss_cls.get_activation(scores).log().clamp(min=MIN_LOGIT) if custom else scores


def one_line(error: Exception) -> str:
    """Returns an exception's message in one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split(" Please check")[0].split()) or type(error).__name__


def _check(model: BaseModule) -> None:
    """Raises ValueError naming the part of the model that is not supported or overrides methods of inference."""
    _check_type("model", model, TwoStageDetector)
    _check_type("model.roi_head", getattr(model, "roi_head", None), *ROI_HEADS)
    if not model.with_rpn:
        raise ValueError("model.rpn_head is None, expected an RPN head")
    nms = model.roi_head.test_cfg.nms or {}
    for key, expected in NMS_OPTIONS.items():
        if nms.get(key):
            raise ValueError(f"model.test_cfg.rcnn.nms has {key} {nms[key]}, expected {expected}")
    heads = list_stages(model.roi_head.bbox_head)
    for head in heads:
        _check_type("model.roi_head.bbox_head", head, BBoxHead)
        if not (head.with_cls and head.with_reg):
            raise ValueError("model.roi_head.bbox_head has with_cls or with_reg False, expected both")
        loss = f"model.roi_head.bbox_head.loss_cls is a {type(head.loss_cls).__name__}"
        if len(heads) > 1 and (head.custom_cls_channels or head.custom_activation):
            raise ValueError(f"{loss}, expected softmax scores in a cascade, where logits are averaged")
        if head.custom_cls_channels:
            scores = torch.linspace(-3, 3, head.fc_cls.out_features)[None]
            if not torch.allclose(logits_of(head, scores).softmax(-1), head.loss_cls.get_activation(scores)):
                raise ValueError(f"{loss}, expected scores of K classes and background that sum to 1")


def _check_type(field: str, part: object, *supported: type) -> None:
    """Raises ValueError unless the part is an instance of a supported class, or a subclass with the same inference."""
    for base in supported:
        if isinstance(part, base) and all(getattr(type(part), m) is getattr(base, m) for m in INFERENCE_METHODS[base]):
            return
    expected = " or ".join(base.__name__ for base in supported)
    raise ValueError(f"{field} is a {type(part).__name__}, expected {expected} or a subclass with the same inference")
