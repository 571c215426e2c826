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
# # My own COCO dataset in a notebook
#
# For a dataset in COCO's format and a detector that was trained on it. Change the next cell: your annotation files,
# your folders of images, your detector. As it stands, it is Mini-LVIS in COCO's format
# (`python -m benchmarks.minilvis.make`, then `python -m benchmarks.minilvis.coco data/minilvis`), and takes about five
# minutes of one CPU core.

# %% tags=["parameters"]
from pathlib import Path

import extract

TRAIN, TRAIN_IMAGES = Path("data/minilvis/coco/train.json"), Path("data/minilvis/train")
VAL, VAL_IMAGES = Path("data/minilvis/coco/val.json"), Path("data/minilvis/val")
DETECTOR = {
    "detector": "torchvision:benchmarks.minilvis.detector:mask_rcnn",  # MODULE:FUNCTION that returns your model
    "weights": Path("benchmarks/minilvis/weights/plain.safetensors"),
}
RUN = Path("data/notebooks/my_dataset")
TAIL, STEPS = 100, 2000

# %%
import calib
import fuse
from extract.data.annotations import read_annotations
from extract.data.bins import bin_index, bin_names

# %% [markdown]
# ## Is the tail long?
#
# How many classes have how many training instances. Files are read as tools write them; what is left out or changed is
# said in a line each.

# %%
classes = read_annotations(TRAIN).classes
bins = classes.groupby(bin_index(classes["instance_count"]))["instance_count"].agg(["size", "sum"])
bins.set_axis([bin_names()[i] for i in bins.index]).set_axis(["classes", "instances"], axis=1)

# %% [markdown]
# ## The detector
#
# Which of its outputs is which class is taken from the names that its framework keeps; without names, outputs are
# categories by ascending id.

# %%
detector = extract.load_detector(extract.DetectorSpec(**DETECTOR))
detector

# %% [markdown]
# ## The caches
#
# Embeddings are 2 KB per RoI and train linear heads. `level="hidden"` trains more layers, see `docs/guide.md`.

# %%
common = {**DETECTOR, "train_annotations": TRAIN, "level": "embedding"}
train = extract.run(
    extract.Config(
        **common,
        split="train",
        annotations=TRAIN,
        images=TRAIN_IMAGES,
        min_images_per_class=20,
        out=str(RUN / "train.zarr"),
    )
)
val = extract.run(
    extract.Config(**common, split="val", annotations=VAL, images=VAL_IMAGES, proposals=300, out=str(RUN / "val.zarr"))
)
val

# %% [markdown]
# ## Look before you train
#
# Are the boxes on the objects, and are the names right? Where the detector's classes are in another order than the
# file's, the names below the tiles are wrong for frequent classes as well. A row per bin, the rarest classes first:

# %%
extract.contact_sheet(train, TRAIN, TRAIN_IMAGES, by="bin")

# %% [markdown]
# ## A method without training, and a head
#
# NorCal divides scores by a power of the class count. The head is a new linear classifier, trained on class-balanced
# RoIs.

# %%
norcal = calib.posthoc.NorCal(gamma=0.6).fit(train)
norcal

# %%
head = calib.train_head(train, steps=STEPS, out=str(RUN / "head"))
head

# %% [markdown]
# ## Which one helps?
#
# A file without LVIS's fields is exhaustive: every class is annotated in every image, and COCO's protocol evaluates it.

# %%
options = {
    "original": ("original", None),
    "norcal": ("calibrated", norcal),
    "head": ("calibrated", head),
    "cat": ("cat", head),
}
fusions = {
    name: fuse.Fusion.for_cache(val, fuse.FusionConfig(mode=mode, tail=TAIL, max_detections=100), scorer)
    for name, (mode, scorer) in options.items()
}
rows = fuse.detect_many(val, fusions, masks=False)
fuse.compare(VAL, rows, val.classes)

# %%
ax = fuse.plots.per_bin({name: fuse.per_class_ap(VAL, row, val.classes, iou_type="bbox") for name, row in rows.items()})

# %% [markdown]
# Where the errors are: which type costs how much AP50.

# %%
shown = {name: rows[name] for name in ("original", "cat")}
ax = fuse.plots.errors(fuse.error_table(VAL, shown, val.classes))

# %% [markdown]
# ## Use it
#
# On new images, and as results in COCO's format. `python -m fuse export` writes a model that your framework loads.

# %%
rows["cat"].to_json(RUN / "detections.json")
calibrated = fuse.CalibratedDetector(detector, head, mode="cat", tail=TAIL)
(found,) = calibrated.predict(sorted(VAL_IMAGES.iterdir())[0])
found

# %%
ax = fuse.plots.gallery(VAL, shown, val.classes, VAL_IMAGES, tail=TAIL)
