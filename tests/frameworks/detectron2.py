"""Small random detectron2 detectors, and detectron2's own inference with them."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from extract.config import DetectorSpec
from extract.detectors.base import Image, ImageDetections
from tests.exactness import make_images
from tests.frameworks import standardise

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # detectron2 scripts at import
    pytest.importorskip("detectron2.modeling")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
    from detectron2.engine import DefaultPredictor
    from detectron2.modeling import build_model
    from detectron2.modeling.backbone import resnet
    from detectron2.structures import Instances

    import extract.detectors.detectron2  # noqa: F401, imports more of detectron2
    from tests.frameworks.detectron2_project import CLASSES, FEDERATED, add_config

SIZE = (96, 144)
"""Of the images, before they are resized to 120 x 180."""
PROJECT = f"{add_config.__module__}:{add_config.__name__}"
OFFSET_STD = 0.05
"""Of the weights that compute offsets of deformable convolutions: some pixels. They are 0 when a model is built."""
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
DEFORMABLE = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]}
MODULATED = {"MODEL.RESNETS.DEFORM_MODULATED": True, "MODEL.RESNETS.DEFORM_NUM_GROUPS": 2}
AGNOSTIC = FPN | {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True}
KINDS: dict[str, dict[str, Any]] = {
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
    "objectness": FPN | {"MODEL.ROI_HEADS.NAME": "ObjectnessROIHeads"},
    "CenterNet2, cascade": AGNOSTIC
    | {
        "MODEL.ROI_HEADS.NAME": "CenterNet2Heads",
        "MODEL.PROPOSAL_GENERATOR.NAME": "ProbabilityRPN",
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    },
    "convolutions": FPN
    | {
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    },
    "deformable": FPN | DEFORMABLE,
    "deformable cascade": AGNOSTIC | DEFORMABLE | {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"} | MODULATED,
    "many classes": AGNOSTIC | {"MODEL.ROI_HEADS.NUM_CLASSES": 1230, "MODEL.MASK_ON": False},
}
"""Kind of detector → its options besides `SMALL`."""
SPECIFIC_MASKS = {"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False}
TINY_KINDS = {
    "cascade": KINDS["cascade"],
    "cascade, class-specific masks": KINDS["cascade"] | SPECIFIC_MASKS,
    "sigmoid": AGNOSTIC | {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True},
    "class-specific": FPN,
    "boxes without area": FPN | {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [0.5] * 4},
    "c4, class-specific masks": KINDS["c4"] | SPECIFIC_MASKS,
}
"""Kind of detector for the tiny dataset → its options besides `SMALL`."""
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


@dataclass(frozen=True)
class Reference:
    """The files of a random detector, and detectron2's own inference with it."""

    spec: DetectorSpec
    predictor: DefaultPredictor

    def with_threshold(self, score_threshold: float) -> Reference:
        """Sets the score threshold of the predictor."""
        found = self.predictor.model.roi_heads.box_predictor
        for predictor in found if isinstance(found, nn.ModuleList) else [found]:
            predictor.test_score_thresh = score_threshold
        return self

    def detections(self, image: Image) -> ImageDetections:
        """Detections before the predictor removes boxes without area, in pixels of the image."""
        with torch.no_grad():
            pixels = image.pixels[:, :, ::-1] if self.predictor.input_format == "BGR" else image.pixels
            resized = self.predictor.aug.get_transform(pixels).apply_image(pixels)
            tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
            (found,) = self.predictor.model.inference([{"image": tensor}], do_postprocess=False)
        height, width = (o / r for o, r in zip(image.pixels.shape, found.image_size, strict=False))
        boxes = found.pred_boxes.tensor * torch.tensor([width, height, width, height])
        return ImageDetections(boxes.numpy(), found.pred_classes.numpy(), found.scores.numpy())

    def predict(self, image: Image) -> Instances:
        """The predictor's result."""
        return self.predictor(image.pixels[:, :, ::-1])["instances"]


def deformable_layers() -> ModuleType:
    """Returns detectron2's layers of deformable convolution with torchvision's operation in place of compiled ones."""
    name = "detectron2.layers.deform_conv"
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {"detectron2._C": ModuleType("detectron2._C")}):
        spec.loader.exec_module(module)

    def convolve(x: Tensor, offset: Tensor, weight: Tensor, *options: Any) -> Tensor:
        stride, padding, dilation, *_ = options  # torchvision derives the groups from the shapes
        return deform_conv2d(x, offset, weight, None, stride, padding, dilation)

    def modulated(
        x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
    ) -> Tensor:
        stride, padding, dilation, *_ = options
        return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    module.deform_conv, module.modulated_deform_conv = convolve, modulated
    return module


def install_deformable_layers() -> None:
    """Replaces the layers that detectron2's ResNet is built of; without compiled operations they cannot be built."""
    layers = deformable_layers()
    resnet.DeformConv, resnet.ModulatedDeformConv = layers.DeformConv, layers.ModulatedDeformConv


install_deformable_layers()


def make_config(options: dict[str, Any]) -> CfgNode:
    """Returns the config of a small detector with other options."""
    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_list([part for pair in (SMALL | options).items() for part in pair])
    return cfg


def write_reference(kind: str, folder: Path, **options: Any) -> Reference:
    """Writes weights and config of a detector into the folder; `options` replace the config's, for a .yaml."""
    if kind == "lazy":
        file, weights = folder / "lazy.py", folder / "model.pth"
        file.write_text(LAZY.format(weights=weights))
        save_weights(lambda: instantiate(LazyConfig.load(str(file)).model), folder)
        return Reference(DetectorSpec("detectron2", config_file=file, device="cpu"), LazyPredictor(file))
    cfg = make_config(KINDS[kind] | options)
    cfg.MODEL.WEIGHTS = str(save_weights(lambda: build_model(cfg), folder))
    file = folder / f"{kind}.yaml"
    file.write_text(cfg.dump())
    return Reference(DetectorSpec(f"detectron2:{PROJECT}", config_file=file, device="cpu"), DefaultPredictor(cfg))


def tiny_spec(kind: str, folder: Path, classes: int) -> DetectorSpec:
    """Writes weights and config of a detector that needs no project, for the tiny dataset's images."""
    size = {"INPUT.MIN_SIZE_TEST": 112, "INPUT.MAX_SIZE_TEST": 168}
    options = SMALL | TINY_KINDS[kind] | size | {"MODEL.ROI_HEADS.NUM_CLASSES": classes}
    cfg = get_cfg()
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    weights = save_weights(lambda: build_model(cfg), folder)
    (folder / "tiny.yaml").write_text(cfg.dump())
    return DetectorSpec("detectron2", weights, folder / "tiny.yaml", device="cpu")


def save_weights(build: Callable[[], nn.Module], folder: Path) -> Path:
    """Writes random weights whose scores and boxes differ from RoI to RoI like trained ones."""
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(1)
        model = build().eval()
        for name, module in model.named_modules():
            if name.endswith("conv2_offset"):
                nn.init.normal_(module.weight, std=OFFSET_STD)
        deviations = {"cls_score": 2.0, "bbox_pred": 1.0}
        for name, module in model.named_modules():
            if name.rsplit(".")[-1] in deviations:
                nn.init.normal_(module.weight)
                deviation = deviations[name.rsplit(".")[-1]]
                module.register_forward_hook(functools.partial(standardise, deviation=deviation))
        pixels = torch.from_numpy(make_images(SIZE)[0].pixels.transpose(2, 0, 1).astype(np.float32))
        model([{"image": pixels}])
    DetectionCheckpointer(model, str(folder)).save("model")
    return folder / "model.pth"
