"""mmdetection's Hybrid Task Cascade with a semantic branch, at Mini-LVIS's size.

A config of mmdetection's own components, for `mmengine.Config.fromfile`. The backbone is that of `detector.py`:
ResNet-18 up to layer3 under a 64-channel FPN. `train_htc.py` trained `weights/htc.safetensors`. mmdetection needs
mmcv's compiled operations, or `benchmarks/mmcv_ext.py` in their place.
"""

default_scope = "mmdet"

classes = 240
groups = 15  # of `classes.py`; the classes of the semantic branch, besides background
channels = 64  # of every FPN level, and of the mask heads, each of which takes the features of the last
strides = [4, 8, 16]


def roi_extractor(size: int, sampling_ratio: int, strides: list[int]) -> dict:
    """Pools boxes under 48 px from the FPN level of stride 4, those up to 96 px from that of stride 8."""
    roi_layer = dict(type="RoIAlign", output_size=size, sampling_ratio=sampling_ratio)
    return dict(
        type="SingleRoIExtractor", roi_layer=roi_layer, out_channels=channels, featmap_strides=strides, finest_scale=24
    )


def box_head(stds: list[float]) -> dict:
    """Configures one stage's classifier and class-agnostic regressor; `stds` is the scale of its deltas."""
    return dict(
        type="Shared2FCBBoxHead",
        in_channels=channels,
        fc_out_channels=128,
        roi_feat_size=7,
        num_classes=classes,
        reg_class_agnostic=True,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
    )


def mask_head(takes_features: bool) -> dict:
    """Configures one stage's class-agnostic masks; all heads but the first take the features of the head before."""
    return dict(
        type="HTCMaskHead",
        with_conv_res=takes_features,
        num_convs=1,  # features of the last stage's masks have passed three
        in_channels=channels,
        conv_out_channels=channels,
        num_classes=classes,
        class_agnostic=True,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
    )


def stage_training(iou: float) -> dict:
    """Configures the matching IoU of one stage, and how many RoIs of an image it is trained on."""
    return dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, ignore_iof_thr=-1),
        sampler=dict(type="RandomSampler", num=32, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        mask_size=28,
        pos_weight=-1,
        debug=False,
    )


model = dict(
    type="HybridTaskCascade",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[114.75] * 3,
        std=[63.75] * 3,
        bgr_to_rgb=True,
        pad_mask=True,
        pad_seg=True,
        seg_pad_value=255,
        pad_size_divisor=16,
    ),
    backbone=dict(
        type="ResNet",
        depth=18,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=3,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
    neck=dict(type="FPN", in_channels=[64, 128, 256], out_channels=channels, num_outs=3),
    rpn_head=dict(
        type="RPNHead",
        in_channels=channels,
        feat_channels=channels,
        # Sides of 14 and 20, 28 and 40, 52 and 75 px.
        anchor_generator=dict(
            type="AnchorGenerator", base_sizes=[4, 8, 15], scales=[3.5, 5.0], ratios=[0.75, 1.33], strides=strides
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0),
    ),
    roi_head=dict(
        type="HybridTaskCascadeRoIHead",
        interleaved=True,
        mask_info_flow=True,
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=roi_extractor(7, 1, strides),
        bbox_head=[
            box_head([0.1, 0.1, 0.2, 0.2]),
            box_head([0.05, 0.05, 0.1, 0.1]),
            box_head([0.033, 0.033, 0.067, 0.067]),
        ],
        mask_roi_extractor=roi_extractor(14, 1, strides),
        mask_head=[mask_head(False), mask_head(True), mask_head(True)],
        semantic_roi_extractor=roi_extractor(7, 1, [8]),
        semantic_head=dict(
            type="FusedSemanticHead",
            num_ins=3,
            fusion_level=1,
            seg_scale_factor=1 / 8,
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=groups + 1,
            loss_seg=dict(type="CrossEntropyLoss", ignore_index=255, loss_weight=0.2),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, ignore_iof_thr=-1),
            sampler=dict(type="RandomSampler", num=128, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=600, max_per_img=300, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=[stage_training(0.5), stage_training(0.6), stage_training(0.7)],
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=300, mask_thr_binary=0.5),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, with_seg=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(144, 144), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
test_dataloader = dict(dataset=dict(type="CocoDataset", test_mode=True, pipeline=test_pipeline))
