"""The backbone of `cascade.yaml`: detectron2's FPN over a ResNet that ends with res4.

detectron2's `build_resnet_fpn_backbone` computes p6 from p5, which a ResNet without res5 lacks. The library loads the
detector as `detectron2:benchmarks.minilvis.cascade:register` with the config file.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone


@BACKBONE_REGISTRY.register()
def build_short_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds the backbone: (N, 3, H, W) -> {"p2", "p3", "p4"} of (N, C, H/s, W/s) with strides s = 4, 8, 16."""
    fpn = cfg.MODEL.FPN
    body = build_resnet_backbone(cfg, input_shape)
    return FPN(body, fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, fuse_type=fpn.FUSE_TYPE)


def register(cfg: CfgNode) -> None:
    """Does nothing: importing this module has registered the backbone, and `cfg` needs no further keys."""
