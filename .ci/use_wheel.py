"""Uses an installed wheel: writes a cache, trains a head from it, and detects with both."""

from pathlib import Path

import numpy as np
import pandas as pd

import calib
import extract
import fuse

CLASSES, CHANNELS, ROIS = 5, 8, 40

for package in (extract, calib, fuse):
    assert "site-packages" in str(package.__file__), f"{package.__file__} is not that of the wheel"
    assert (Path(package.__file__).parent / "py.typed").exists()
assert list((Path(fuse.__file__).parent / "report").glob("*.jinja")), "the report's template is not in the wheel"

rng = np.random.default_rng(0)
prototypes = rng.normal(size=(CLASSES + 1, CHANNELS))


def image(image_id: int) -> extract.RoIs:
    """RoIs whose features tell their class."""
    labels = rng.integers(0, CLASSES + 1, ROIS).astype(np.int32)
    corners = rng.uniform(0, 50, (ROIS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 20, (ROIS, 2))], 1).astype(np.float32)
    return extract.RoIs(
        image_id=image_id,
        height=80,
        width=80,
        proposals=boxes[:, None],
        boxes=boxes,
        logits=rng.normal(size=(ROIS, 1, CLASSES + 1)).astype(np.float16),
        objectness=np.ones(ROIS, np.float32),
        features=(prototypes[labels] + rng.normal(0, 0.1, (ROIS, CHANNELS))).astype(np.float16)[:, None],
        labels=labels[:, None],
        ious=np.where(labels < CLASSES, 0.9, 0.1).astype(np.float32)[:, None],
        gt_ids=np.zeros((ROIS, 1), np.int64),
        is_gt=np.zeros(ROIS, bool),
    )


counts = [3, 9, 80, 700, 4000]
classes = pd.DataFrame({"category_id": range(1, CLASSES + 1), "name": list("abcde"), "frequency": list("rrcff")})
classes = classes.assign(image_count=counts, instance_count=counts)
caches = {}
for split in ("train", "val"):
    images = [image(i) for i in range(1, 21)]
    caches[split] = extract.write_cache(f"{split}.zarr", images, classes, split=split, level="embedding")
head = calib.train_head(caches["train"], out="head", head_type="linear", steps=50, classes_per_step=4, device="cpu")
detections = fuse.detect(caches["val"], calib.load_head("head"), mode="calibrated")
best = detections.top_per_image(1)
labels = {rois.image_id: set(rois.labels[:, 0]) for rois in caches["val"]}
right = [category - 1 in labels[i] for i, category in zip(best.image_ids, best.category_ids, strict=True)]
print(f"{len(detections):,} detections in {len(labels)} images; the best of {np.mean(right):.0%} is an object's class")
assert len(detections) and np.mean(right) > 0.9
