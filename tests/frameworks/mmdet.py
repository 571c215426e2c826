"""Small random mmdetection detectors, and mmdetection's own inference with them."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import mmcv_ext
from extract.config import DetectorSpec
from extract.detectors.base import Image
from tests.exactness import make_images
from tests.frameworks import standardise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the frameworks about each other, at import
    pytest.importorskip("mmcv")
    mmcv_ext.install()
    pytest.importorskip("mmdet")
    from mmdet.apis import inference_detector, init_detector
    from mmdet.structures import DetDataSample
    from mmengine.config import DictAction

    import extract.detectors.mmdet  # noqa: F401, imports more of mmdetection
    from extract.detectors.mmdet_config import list_stages

CLASSES, CHANNELS, STRIDES = 20, 32, [4, 8, 16]
DELTAS = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
COSINE = {"cls_predictor_cfg": {"type": "NormedLinear", "tempearture": 20}}
CONVOLUTIONS = {
    "type": "Shared4Conv1FCBBoxHead",
    "conv_out_channels": 24,
    "norm_cfg": {"type": "GN", "num_groups": 4},
}
SEPARATE = {
    "type": "ConvFCBBoxHead",
    "num_cls_convs": 2,
    "num_cls_fcs": 2,
    "num_reg_convs": 1,
    "conv_out_channels": 24,
    "norm_cfg": {"type": "BN"},
}
SEESAW = {"loss_cls": {"type": "SeesawLoss", "num_classes": CLASSES}}

Config = dict[str, Any]


def mask_rcnn(classes: int = CLASSES, agnostic: bool = True, **box_head: Any) -> Config:
    """A config of Mask R-CNN."""
    roi_head = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _roi_extractor(7),
        "bbox_head": _box_head(classes, agnostic, **box_head),
        "mask_roi_extractor": _roi_extractor(14),
        "mask_head": _mask_head(classes, agnostic),
    }
    return _two_stage(roi_head, "MaskRCNN")


def cascade(classes: int = CLASSES, agnostic: bool = True, **box_head: Any) -> Config:
    """A config of Cascade R-CNN."""
    roi_head = {
        "type": "CascadeRoIHead",
        "num_stages": 3,
        "stage_loss_weights": [1, 0.5, 0.25],
        "bbox_roi_extractor": _roi_extractor(7),
        "bbox_head": [_box_head(classes, agnostic, **box_head) for _ in range(3)],
        "mask_roi_extractor": _roi_extractor(14),
        "mask_head": [_mask_head(classes, agnostic) for _ in range(3)],
    }
    return _two_stage(roi_head, "CascadeRCNN", [_train_cfg(iou) for iou in (0.5, 0.6, 0.7)])


def hybrid(classes: int = CLASSES, semantic: bool = True, agnostic: bool = True) -> Config:
    """A config of Hybrid Task Cascade, with or without its semantic branch."""
    config = cascade(classes, agnostic)
    roi_head = config["model"]["roi_head"]
    roi_head["type"], config["model"]["type"] = "HybridTaskCascadeRoIHead", "HybridTaskCascade"
    roi_head["mask_head"] = [_mask_head(classes, agnostic, type="HTCMaskHead", with_conv_res=bool(i)) for i in range(3)]
    if semantic:
        roi_head["semantic_roi_extractor"] = _roi_extractor(14, [8])
        roi_head["semantic_head"] = {
            "type": "FusedSemanticHead",
            "num_ins": 3,
            "fusion_level": 1,
            "seg_scale_factor": 1 / 8,
            "num_convs": 1,
            "in_channels": CHANNELS,
            "conv_out_channels": CHANNELS,
            "num_classes": 5,
            "loss_seg": {"type": "CrossEntropyLoss", "ignore_index": 255, "avg_non_ignore": True},
        }
    return config


def resnext() -> Config:
    """A config with another backbone, no masks, and class-specific boxes in every stage."""
    config = cascade(agnostic=False)
    model = config["model"]
    model["backbone"] |= {"type": "ResNeXt", "depth": 50, "groups": 4, "base_width": 4}
    model["neck"]["in_channels"] = [64, 128, 256]
    del model["roi_head"]["mask_head"], model["roi_head"]["mask_roi_extractor"]
    return config


def deformable(dcn: Config) -> Config:
    """A config of Hybrid Task Cascade on a ResNeXt with deformable convolution."""
    config = hybrid()
    config["model"]["backbone"] |= {
        "type": "ResNeXt",
        "depth": 50,
        "groups": 4,
        "base_width": 4,
        "dcn": {**dcn, "fallback_on_stride": False},
        "stage_with_dcn": (False, True, True),
    }
    config["model"]["neck"]["in_channels"] = [64, 128, 256]
    return config


def double_head() -> Config:
    """A config of Double-Head R-CNN: the classifier's layers are fully connected, the regressor's are convolutions."""
    box_head = {"type": "DoubleConvFCBBoxHead", "num_convs": 1, "num_fcs": 2, "conv_out_channels": CHANNELS}
    config = mask_rcnn(agnostic=False, **box_head)
    config["model"]["roi_head"] |= {"type": "DoubleHeadRoIHead", "reg_roi_scale_factor": 1.3}
    return config


def mask_scoring() -> Config:
    """A config of Mask Scoring R-CNN."""
    config = mask_rcnn(agnostic=False)
    config["model"]["roi_head"] |= {
        "type": "MaskScoringRoIHead",
        "mask_iou_head": {
            "type": "MaskIoUHead",
            "num_convs": 1,
            "num_fcs": 1,
            "in_channels": CHANNELS,
            "conv_out_channels": 16,
            "fc_out_channels": 16,
            "num_classes": CLASSES,
        },
    }
    return config


KINDS: dict[str, Callable[[], Config]] = {
    "class-agnostic": mask_rcnn,
    "class-specific": lambda: mask_rcnn(agnostic=False),
    "cascade": cascade,
    "hybrid": lambda: hybrid(semantic=False),
    "hybrid, semantic": hybrid,
    "cosine": lambda: mask_rcnn(**COSINE),
    "seesaw": lambda: mask_rcnn(**SEESAW),
    "ResNeXt, no masks": resnext,
    "convolutions": lambda: mask_rcnn(agnostic=False, **CONVOLUTIONS),
    "cascade with convolutions": lambda: cascade(**CONVOLUTIONS),
    "convolutions of the classifier": lambda: mask_rcnn(**SEPARATE),
    "double head": double_head,
    "deformable": lambda: deformable({"type": "DCN", "deform_groups": 1}),
    "deformable, modulated": lambda: deformable({"type": "DCNv2", "deform_groups": 2}),
}
"""Kind of detector → its config."""


def changed(config: Config, **parts: Any) -> Config:
    """Returns a copy with parts replaced; `__` in a name separates keys."""
    config = copy.deepcopy(config)
    for name, value in parts.items():
        *path, last = name.split("__")
        inner = config
        for key in path:
            inner = inner[key]
        inner[last] = value
    return config


def write_config(path: Path, config: Config) -> Path:
    """Writes a config as a Python file."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    return path


def write_spec(folder: Path, config: Config) -> DetectorSpec:
    """Writes a config and random weights whose scores and boxes differ from RoI to RoI like trained ones."""
    path = write_config(folder / "tiny.py", config)
    weights = write_weights(folder, init_model, str(path))
    return DetectorSpec("mmdet", weights, path, device="cpu")


def write_weights(
    folder: Path, build: Callable[..., nn.Module], *arguments: Any, deviation: float | None = None, **options: Any
) -> Path:
    """Writes random weights of the model that `build(…)` returns, whose scores and boxes differ from RoI to RoI.

    `deviation` scales the classifiers so that their logits have this standard deviation over the RoIs of an image.
    """
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build(*arguments, **options)
        for module in model.modules():
            if hasattr(module, "fc_cls"):
                for layer, std in ((module.fc_cls, 0.5), (module.fc_reg, 0.2)):
                    nn.init.normal_(layer.weight, std=std * (48 / layer.in_features) ** 0.5)
                nn.init.normal_(module.fc_cls.bias, std=0.5)
            if hasattr(module, "conv_offset"):
                offsets = module.conv_offset.weight  # zero when a model is built
                nn.init.normal_(offsets, std=offsets[0].numel() ** -0.5)
            if hasattr(module, "conv_logits"):
                nn.init.normal_(module.conv_logits.weight, std=0.3)
    if deviation is not None:
        for head in list_stages(model.roi_head.bbox_head):
            head.fc_cls.register_forward_hook(functools.partial(standardise, deviation=deviation))
        infer(model, make_images((96, 144)))
    torch.save({"state_dict": model.state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


def init_model(*args: Any, **options: Any) -> nn.Module:
    """Calls `init_detector`, which changes the warning filters and warns that class names are missing."""
    with warnings.catch_warnings(record=True):
        return init_detector(*args, device="cpu", **options)


def infer(model: nn.Module, images: Sequence[Image]) -> list[DetDataSample]:
    """Calls `inference_detector`, which runs one image at a time."""
    return inference_detector(model, [np.ascontiguousarray(image.pixels[..., ::-1]) for image in images])


def parsed_options(spec: DetectorSpec) -> dict[str, Any]:
    """Returns the spec's options as mmengine's functions take them."""
    pairs = (option.split("=", 1) for option in spec.detector_options)
    return {key: DictAction._parse_iterable(value) for key, value in pairs}


def reference(spec: DetectorSpec, images: Sequence[Image], score_threshold: float) -> list[DetDataSample]:
    """Returns mmdetection's own results, with the spec's options and another score threshold."""
    options = parsed_options(spec) | {"model.test_cfg.rcnn.score_thr": score_threshold}
    return infer(init_model(str(spec.config_file), str(spec.weights), cfg_options=options), images)


def _roi_extractor(size: int, strides: Sequence[int] = STRIDES) -> Config:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 2},
        "out_channels": CHANNELS,
        "featmap_strides": list(strides),
        "finest_scale": 24,
    }


def _box_head(classes: int, agnostic: bool = True, **changes: Any) -> Config:
    return {
        "type": "Shared2FCBBoxHead",
        "in_channels": CHANNELS,
        "fc_out_channels": 48,
        "roi_feat_size": 7,
        "num_classes": classes,
        "reg_class_agnostic": agnostic,
        "bbox_coder": DELTAS,
        **changes,
    }


def _mask_head(classes: int, agnostic: bool = True, **changes: Any) -> Config:
    size = {"num_convs": 1, "in_channels": CHANNELS, "conv_out_channels": CHANNELS}
    return {"type": "FCNMaskHead", **size, "num_classes": classes, "class_agnostic": agnostic, **changes}


def _train_cfg(iou: float) -> Config:
    return {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": iou, "neg_iou_thr": iou, "min_pos_iou": iou},
        "sampler": {"type": "RandomSampler", "num": 16, "pos_fraction": 0.25},
        "pos_weight": -1,
        "mask_size": 28,
        "allowed_border": -1,
        "debug": False,
    }


def _test_cfg() -> Config:
    rpn_nms, rcnn_nms = ({"type": "nms", "iou_threshold": iou} for iou in (0.7, 0.5))
    return {
        "rpn": {"nms_pre": 200, "max_per_img": 60, "nms": rpn_nms, "min_bbox_size": 0},
        "rcnn": {"score_thr": 0.0, "nms": rcnn_nms, "max_per_img": 300, "mask_thr_binary": 0.5},
    }


def _two_stage(roi_head: Config, kind: str, rcnn_train_cfg: list[Config] | None = None) -> Config:
    """Returns a whole config around a RoI head."""
    backbone = {"type": "ResNet", "depth": 18, "num_stages": 3, "strides": (1, 2, 2), "dilations": (1, 1, 1)}
    anchors = {"type": "AnchorGenerator", "scales": [4, 8], "ratios": [0.75, 1.33], "strides": STRIDES}
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (160, 112), "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    model = {
        "type": kind,
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.7, 116.3, 103.5],
            "std": [58.4, 57.1, 57.4],
            "bgr_to_rgb": True,
            "pad_size_divisor": 16,
        },
        "backbone": {**backbone, "out_indices": (0, 1, 2), "base_channels": 16, "stem_channels": 16},
        "neck": {"type": "FPN", "in_channels": [16, 32, 64], "out_channels": CHANNELS, "num_outs": 3},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": CHANNELS,
            "feat_channels": CHANNELS,
            "anchor_generator": anchors,
            "bbox_coder": {**DELTAS, "target_stds": [1.0] * 4},
        },
        "roi_head": roi_head,
        "test_cfg": _test_cfg(),
        "train_cfg": rcnn_train_cfg and {"rpn": _train_cfg(0.7), "rcnn": rcnn_train_cfg},
    }
    dataset = {"type": "CocoDataset", "test_mode": True, "pipeline": pipeline}
    return {"default_scope": "mmdet", "model": model, "test_dataloader": {"dataset": dataset}}
