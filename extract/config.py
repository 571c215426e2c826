"""The options of `python -m extract`, and of its housekeeping commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class DetectorSpec:
    """Which detector to load, and where it runs."""

    detector: str
    """detectron2, mmdet, or torchvision:MODULE:BUILDER, a function that returns the model, as in
    torchvision:my_models:mask_rcnn. detectron2:MODULE:FUNCTION calls FUNCTION(cfg) before the config file is
    read, for a project that registers modules and keys of its own."""

    weights: Path | None = None
    """The trained weights: .safetensors, .pth, or a .pkl of detectron2's model zoo; detectron2 has a default
    in its config file."""

    config_file: Path | None = None
    """detectron2's .yaml or LazyConfig .py, or mmdetection's .py."""

    detector_options: Positional[tuple[str, ...]] = ()
    """The framework's own options, handed on as they are: KEY VALUE … of detectron2 (key=value … of a
    LazyConfig), key=value … of mmdetection, KEY=VALUE arguments of a builder."""

    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class Config(DetectorSpec):
    """Computes a frozen detector's RoI features once and keeps them in a cache. The same command again resumes.

    Example: python -m extract --detector torchvision:benchmarks.minilvis.detector:mask_rcnn
    --weights benchmarks/minilvis/weights/plain.safetensors --split train --images-per-class 10
    --annotations data/minilvis/train.json --images data/minilvis/train --out data/train.zarr
    """

    annotations: Path
    """LVIS or COCO annotation file, or a data set's name in detectron2's catalog."""

    images: Path | None = None
    """Folder that the file names in the annotations are relative to; a data set of the catalog brings its own."""

    out: str
    """The cache to write, a path or an fsspec URL."""

    split: Literal["train", "val"]
    """A train cache keeps ground-truth boxes, matched foreground and a sample of background; a val cache
    keeps the top proposals, and masks."""

    level: Literal["pooled", "embedding", "logits"] = "pooled"
    """What is kept of each RoI: pooled maps (any head can be trained), the embedding before the
    classifier (linear heads only) or the logits alone (methods that need no training)."""

    train_annotations: Path | None = None
    """File or name that the class table's training counts come from; needed for val, `annotations` for train."""

    images_per_class: int | None = None
    """Visit only as many images as give every class so many."""

    proposals: int = 1000
    """Proposals considered per image, best first."""

    background: int = 64
    """Most background RoIs kept per image of a train cache."""

    flip: float | None = None
    """Probability that an image is mirrored; by default 0.5 for train and 0 for val."""

    masks: bool | None = None
    """Keep class-agnostic mask probabilities; by default for val if the detector has them."""

    batch_size: int = 4
    """Images per forward pass."""

    seed: int = 0
    """Of the choice of images, mirroring and background."""

    overwrite: bool = False
    """Replace a cache that is there instead of resuming it."""

    estimate: bool = False
    """Print what it would take, from one batch, and stop."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and its bound."""
        bounds = {"images_per_class": 1, "proposals": 1, "background": 0, "batch_size": 1, "seed": 0}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}, expected at least {bound}")
        if self.split == "val" and self.train_annotations is None:
            raise ValueError("a val cache needs --train-annotations, for the training counts of its classes")
        if self.flip is not None and not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability in [0, 1]")


@dataclass(frozen=True)
class InspectConfig:
    """Shows what a cache holds.

    Example: python -m extract inspect train.zarr
    """

    cache: Positional[str]
    """Path or fsspec URL."""


@dataclass(frozen=True)
class VerifyConfig:
    """Reads a whole cache, checksums included, and compares its logits with those of the stored features.

    Example: python -m extract verify train.zarr
    """

    cache: Positional[str]
    """Path or fsspec URL."""


@dataclass(frozen=True)
class ExportConfig:
    """Writes a whole cache to one HDF5 file.

    Example: python -m extract export train.zarr train.h5
    """

    cache: Positional[str]
    """Path or fsspec URL."""

    file: Positional[Path]
    """The .h5 file to write."""


@dataclass(frozen=True)
class ImportConfig:
    """Writes a cache from an HDF5 file; docs/format.md says what the file must hold.

    Example: python -m extract import train.h5 train.zarr
    """

    file: Positional[Path]
    """The .h5 file."""

    cache: Positional[str]
    """Path or fsspec URL of the cache to write."""

    overwrite: bool = False
    """Replace a cache that is there."""


@dataclass(frozen=True)
class RecallConfig:
    """Average recall of a val cache's proposals, overall and per bin of training instances (paper, Table 3).

    Example: python -m extract recall val.zarr --annotations val.json
    """

    cache: Positional[str]
    """Path or fsspec URL of a val cache."""

    annotations: Path
    """The annotation file it was extracted with."""

    bins: tuple[float, ...] = (10, 100, 1000)
    """Edges between the bins of training instances."""
