# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A detector calibrated, from an image to the picture before and after
#
# Mini-LVIS has 240 classes of emoji, drawn on photographs with LVIS's class frequencies: some have thousands of
# training instances, some have one. The detector *finds* the rare ones and calls them by frequent names. Here its
# features are computed once, its classifier is trained again on class-balanced RoIs, and both are compared.
#
# `python -m benchmarks.minilvis.make` draws the dataset. The notebook takes about six minutes of one CPU core.

# %% tags=["parameters"]
from pathlib import Path

DATA = Path("data/minilvis")
WEIGHTS, OPTIONS = Path("benchmarks/minilvis/weights/plain.safetensors"), ()
RUN = Path("data/notebooks/mini_lvis")
STEPS, PROJECTION = 3000, 256

# %%
import numpy as np
from PIL import Image

import calib
import extract
import fuse
from extract.data.annotations import read_annotations

# %% [markdown]
# ## The detector
#
# Any torchvision, detectron2 or mmdetection detector works as it is.

# %%
spec = {
    "detector": "torchvision:benchmarks.minilvis.detector:mask_rcnn",
    "weights": WEIGHTS,
    "detector_options": OPTIONS,
}
detector = extract.load_detector(extract.DetectorSpec(**spec))
detector

# %% [markdown]
# An image, and what the detector finds in it:

# %%
pixels = np.asarray(Image.open(sorted((DATA / "test").glob("*.png"))[0]).convert("RGB"))
original = fuse.CalibratedDetector(detector, mode="original")
(before,) = original.predict(pixels)
names = read_annotations(DATA / "train.json").classes["name"].tolist()
Image.fromarray(fuse.draw_detections(pixels, *before, names, max_drawn=8))

# %% [markdown]
# ## The cache
#
# One pass of the detector over the images that a class-balanced sample needs. The same cell again resumes, or opens
# what is finished.

# %%
common = {**spec, "train_annotations": DATA / "train.json", "level": "hidden", "projection": PROJECTION}
train = extract.run(
    extract.Config(
        **common,
        split="train",
        annotations=DATA / "train.json",
        images=DATA / "train",
        min_images_per_class=20,
        out=str(RUN / "train.zarr"),
    )
)
val = extract.run(
    extract.Config(
        **common,
        split="val",
        annotations=DATA / "val.json",
        images=DATA / "val",
        proposals=300,
        projection_from=str(RUN / "train.zarr"),
        out=str(RUN / "val.zarr"),
    )
)
val

# %% [markdown]
# What is in it: RoIs cut out of their images, the rarest classes first. Below each is the class that the detector gives
# it: for the rare ones, in red, nearly always another one.

# %%
extract.contact_sheet(train, DATA / "train.json", DATA / "train", max_rows=6)

# %% [markdown]
# ## The head
#
# The detector's last layers are trained again, on batches in which every class is as frequent as any other.

# %%
head = calib.train_head(train, steps=STEPS, out=str(RUN / "head"))
head

# %% [markdown]
# ## The fusion
#
# The new scores replace the old ones for classes with fewer than 100 training instances, before non-maximum
# suppression. Both rows come from one pass over the cache.

# %%
fusions = {
    "original": fuse.Fusion.for_cache(val, fuse.FusionConfig(mode="original")),
    "calibrated": fuse.Fusion.for_cache(val, fuse.FusionConfig(mode="cat", tail=100), head),
}
rows = fuse.detect_many(val, fusions)
fusions["calibrated"]

# %% [markdown]
# ## The table
#
# AP by bins of training instances, with intervals over images; `~` marks what is within noise.

# %%
fuse.compare(DATA / "val.json", rows, val.classes, iou_type="segm")

# %%
tables = {name: fuse.per_class_ap(DATA / "val.json", row, val.classes) for name, row in rows.items()}
ax = fuse.plots.ap_by_count(tables)

# %% [markdown]
# What the objects of rare classes were taken for, and what they are taken for now:

# %%
ax = fuse.plots.confusions(DATA / "val.json", rows, val.classes)

# %% [markdown]
# ## The picture
#
# The images with the largest gains, with the best detection on each object, before and after:

# %%
ax = fuse.plots.gallery(DATA / "val.json", rows, val.classes, DATA / "val")

# %% [markdown]
# The same head in the live detector, on the image that we began with; only what changed is drawn.

# %%
calibrated = fuse.CalibratedDetector(detector, head, mode="cat")
(after,) = calibrated.predict(pixels)
fuse.draw_pair(pixels, before, after, names, changed_only=True)

# %%
calibrated
