"""The options of `python -m extract`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class DetectorSpec:
    """Which detector to load, and on which device."""

    detector: str
    """detectron2, mmdet, or torchvision:MODULE:BUILDER with a function that returns the model, as in
    torchvision:my_models:mask_rcnn. detectron2:MODULE:FUNCTION calls FUNCTION(cfg) before it reads the config
    file, for projects that register modules and config keys."""

    weights: Path | None = None
    """Trained weights: .safetensors, .pth, or a .pkl of detectron2's model zoo; default for detectron2: those
    that its config file names."""

    config_file: Path | None = None
    """Config file: detectron2's .yaml or LazyConfig .py, or mmdetection's .py."""

    detector_options: Positional[tuple[str, ...]] = ()
    """The framework's own options, passed on unchanged: KEY VALUE … for detectron2 (key=value … for a
    LazyConfig), key=value … for mmdetection, KEY=VALUE arguments for a builder."""

    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one, else the CPU."""

    precision: Precision = "fp32"
    """Number format of the backbone, and of the convolutions of RPN, box and mask heads. bf16 and fp16 are several
    times faster where the device has instructions for them; boxes, NMS, RoIAlign and classifiers stay in fp32."""


@dataclass(frozen=True, kw_only=True)
class Config(DetectorSpec):
    """Computes a frozen detector's RoI features once and stores them in a cache. The same command again resumes.

    Example: python -m extract --detector torchvision:benchmarks.minilvis.detector:mask_rcnn
    --weights benchmarks/minilvis/weights/plain.safetensors --split train --min-images-per-class 10
    --annotations data/minilvis/train.json --images data/minilvis/train --out data/train.zarr
    """

    annotations: Path
    """LVIS or COCO annotation file, or the name of a dataset in detectron2's catalog."""

    images: Path | None = None
    """Folder that the file names in the annotations are relative to; datasets of the catalog have a default."""

    out: str
    """Path or fsspec URL of the cache to write."""

    split: Literal["train", "val", "holdout"]
    """A train cache keeps ground-truth boxes, the proposals that match them and a sample of background; a val
    cache keeps the top proposals, and masks. holdout is a val cache of the training images, a tenth, by which
    `python -m fuse select` chooses: of the same annotations and images as the train cache."""

    level: Literal["pooled", "hidden", "embedding", "logits"] = "pooled"
    """Feature level, what is kept of each RoI: pooled maps (for any head), after the box head's convolutions if it
    has some; the first fully connected layer's output before its ReLU, and a projection of the pooled maps (for heads
    whose first layer is frozen or corrected in low rank); the embedding before the classifier (for linear heads); or
    the logits alone (for methods that need no training)."""

    projection: int = 256
    """Number of principal directions that level hidden keeps the coordinates of pooled maps along; 0 for none. They are
    fitted on training RoIs."""

    projection_from: str | None = None
    """Cache of level hidden whose directions are taken over: a val cache's from its train cache."""

    train_annotations: Path | None = None
    """Annotations of the training set, from which its instances are counted; required for val, by default
    `annotations` for train and holdout."""

    classes: Path | None = None
    """Names of the detector's classes, one per line in the order of its outputs, where its framework does not keep
    them or keeps others; N/A for an output that is no category of the annotations."""

    class_order: Literal["name", "id", "file"] | None = None
    """Order of the detector's classes: that of the names that its framework keeps, ascending category ids, or that in
    which the training annotations list them; by default names if there are any, else ids. See docs/guide.md."""

    min_images_per_class: int | None = None
    """Visit only as many images as are needed for every class to have this many, or all of its images; of the
    held-out images with split holdout."""

    proposals: int = 1000
    """Proposals per image, best first, that are kept (val) or matched (train)."""

    background: int = 64
    """Background RoIs sampled per image of a train cache, at most."""

    rois_per_class: int | None = None
    """At most so many foreground RoIs per class and image of a train cache, ground truth first, and as much background;
    by default all. Enough for --rois-per-class of calib.train."""

    flip: float | None = None
    """Probability that an image is flipped left to right; by default 0.5 for train and 0 for val."""

    masks: bool | None = None
    """Keep class-agnostic mask probabilities; by default for val, if the detector predicts them."""

    batch_size: int = 4
    """Images per forward pass."""

    memory_limit: float | None = None
    """Bytes of memory, such as 8e9, that a process may take: if need be, batches are smaller, and each block of images
    is stored before the next begins. Refused before work starts if too little. A GPU's memory does not count."""

    seed: int = 0
    """Seed of the selection of images, of flips and of the background sample."""

    strict: bool = False
    """Refuse annotations of which something would be left out or changed, in place of a warning."""

    allow_outside: bool = False
    """Read images whose file names in the annotations lead out of `images`, as ../ and absolute paths do."""

    overwrite: bool = False
    """Replace an existing cache instead of resuming it."""

    estimate: bool = False
    """Print size and time, estimated from the first images, and stop."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and its bound."""
        bounds = {
            "min_images_per_class": 1,
            "rois_per_class": 1,
            "proposals": 1,
            "background": 0,
            "batch_size": 1,
            "seed": 0,
        }
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}, expected at least {bound}")
        if self.split != "train" and self.rois_per_class is not None:
            raise ValueError(f"rois_per_class is {self.rois_per_class}: a {self.split} cache keeps the top proposals")
        if self.split == "val" and self.train_annotations is None:
            raise ValueError("a val cache needs --train-annotations, for the training counts of its classes")
        check_projection(self.level, self.projection, self.projection_from)
        if self.level == "hidden" and self.split != "train" and self.projection and self.projection_from is None:
            raise ValueError(
                f"a {self.split} cache of level hidden needs --projection-from with its train cache, whose directions "
                "it takes over; --projection 0 for none"
            )
        if self.classes is not None and self.class_order is not None:
            raise ValueError(f"class_order is {self.class_order}: --classes gives the order already")
        if self.flip is not None and not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability in [0, 1]")


def check_projection(level: str, projection: int, projection_from: str | None) -> None:
    """Raises ValueError, naming the option, if the options of the projection do not fit the feature level."""
    if projection < 0:
        raise ValueError(f"projection is {projection}, expected at least 0")
    if level != "hidden" and (projection != Config.projection or projection_from is not None):
        raise ValueError(f"level is {level}: only feature level hidden has a projection")
    if projection_from is not None and projection == 0:
        raise ValueError(f"projection is 0: --projection-from {projection_from} gives directions")
