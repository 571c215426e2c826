"""The Hybrid Task Cascade of `htc.py` without its semantic branch (the paper's Table 11)."""

_base_ = ["htc.py"]

model = dict(roi_head=dict(semantic_roi_extractor=None, semantic_head=None))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
