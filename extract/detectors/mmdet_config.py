"""mmdetection's configs: the model and test pipeline that they name, and the matching IoUs of training.

A model whose inference is not what the adapter takes apart is refused here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose, Resize
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config, DictAction
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

ROI_HEADS = (StandardRoIHead, CascadeRoIHead, HybridTaskCascadeRoIHead)
_ROI_INFERENCE = ("predict", "predict_bbox", "predict_mask", "_bbox_forward", "_mask_forward")
INFERENCE = {
    TwoStageDetector: ("predict",),
    StandardRoIHead: _ROI_INFERENCE,
    **dict.fromkeys(ROI_HEADS[1:], (*_ROI_INFERENCE, "_refine_roi")),
    BBoxHead: ("predict_by_feat", "_predict_by_feat_single", "regress_by_class"),
}
"""What the adapter takes apart: a subclass must not have changed it. How it trains is its own affair."""
MATCHING_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the stages, where a config has no training part that says so."""
SUPPRESSION = {
    "class_agnostic": "suppression within each class",
    "offset": "0: boxes of width x2 - x1",
    "max_num": "none: rcnn.max_per_img says how many",
    "score_threshold": "none: rcnn.score_thr says it",
}
"""Options of mmcv's suppression that are off here, and what is expected instead."""
NO_SCORE = -1e4
"""Logit of a score that is exactly 0: its exponential is 0 as well, and half floats hold it."""


def read_config(path: Path, options: Sequence[str]) -> Config:
    """The file with KEY=VALUE options merged into it, as mmdetection's own --cfg-options are."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is code
        raise ValueError(f"{path}: not a config that mmengine can read: {reason(error)}") from error
    for option in options:
        parsed = Namespace()
        try:
            DictAction([], "options")(ArgumentParser(), parsed, [option])
            config.merge_from_dict(parsed.options)
        except Exception as error:  # mmengine asserts, indexes and unpacks
            raise ValueError(f"detector option {option!r}, expected KEY=VALUE of {path}: {reason(error)}") from error
    return config


def build(config: Config) -> tuple[TwoStageDetector, Compose]:
    """The model, still without its trained weights, and its test pipeline, which takes arrays."""
    # Types are looked up in the config's scope, whatever another framework or an earlier model has left.
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet")):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
        steps = copy.deepcopy(get_test_pipeline_cfg(config))
        steps[0].type = "mmdet.LoadImageFromNDArray"
        pipeline = Compose(steps)
    check(model)
    return model, pipeline


def check(model: nn.Module) -> None:
    """Raises ValueError naming the part of the model that infers otherwise than is taken for granted here."""
    _expect("model", model, TwoStageDetector)
    _expect("model.roi_head", getattr(model, "roi_head", None), *ROI_HEADS)
    if not model.with_rpn:
        raise ValueError("model.rpn_head is None, expected a proposal network")
    nms = model.roi_head.test_cfg.nms or {}
    for key in SUPPRESSION:
        if nms.get(key, 0) not in (0, -1):  # -1 is mmcv's word for no bound
            raise ValueError(f"model.test_cfg.rcnn.nms has {key} {nms[key]}, expected {SUPPRESSION[key]}")
    heads = stages_of(model.roi_head.bbox_head)
    for head in heads:
        _expect("model.roi_head.bbox_head", head, BBoxHead)
        if not (head.with_cls and head.with_reg):
            raise ValueError("model.roi_head.bbox_head has with_cls or with_reg False, expected both")
        loss = f"model.roi_head.bbox_head.loss_cls is a {type(head.loss_cls).__name__}"
        if len(heads) > 1 and (head.custom_cls_channels or head.custom_activation):
            raise ValueError(f"{loss}, expected softmax scores in a cascade, where logits are averaged")
        if head.custom_cls_channels:
            scores = torch.linspace(-3, 3, head.fc_cls.out_features)[None]
            if not torch.allclose(logits_of(head, scores).softmax(-1), head.loss_cls.get_activation(scores)):
                raise ValueError(f"{loss}, expected scores of K classes and background that sum to 1")


def _expect(field: str, part: object, *kinds: type) -> None:
    for kind in kinds:
        if isinstance(part, kind) and all(getattr(type(part), m) is getattr(kind, m) for m in INFERENCE[kind]):
            return
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"{field} is a {type(part).__name__}, expected {expected} or a subclass that infers alike")


def reason(error: Exception) -> str:
    """What is wrong, in one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split(" Please check")[0].split()) or type(error).__name__


def stages_of(heads: nn.Module) -> list[nn.Module]:
    """A cascade's heads, or the one there is."""
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def matching_ious(training: dict | list[dict] | None, stages: int) -> tuple[float, ...]:
    """From which IoU on a region is an object, in each stage's training."""
    parts = training if isinstance(training, list) else [training] * stages
    assigners = [(part or {}).get("assigner", {}) for part in parts]
    return tuple(float(a.get("pos_iou_thr", iou)) for a, iou in zip(assigners, MATCHING_IOUS, strict=False))


def resize_of(pipeline: Compose) -> Resize:
    """The one step of the test pipeline that resizes."""
    found = [step for step in pipeline.transforms if isinstance(step, Resize)]
    if len(found) != 1 or found[0].scale is None:
        raise ValueError(f"the test pipeline has {len(found)} steps of type Resize, expected one, with a scale")
    return found[0]


def digest(config: Config) -> str:
    """sha256 of model and test pipeline, without the initial weights that trained ones replace."""
    # Configs in pure Python hold classes where others hold their names.
    text = json.dumps([config.model, get_test_pipeline_cfg(config)], default=lambda v: getattr(v, "__name__", str(v)))
    initial = ("pretrained", "init_cfg")
    tree = json.loads(text, object_hook=lambda part: {k: v for k, v in part.items() if k not in initial})
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def logits_of(head: BBoxHead, scores: Tensor) -> Tensor:
    """(R, K+1) whose softmax are the class scores that the head makes of its output."""
    custom = head.custom_cls_channels
    return head.loss_cls.get_activation(scores).log().clamp(min=NO_SCORE) if custom else scores
