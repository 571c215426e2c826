"""The options of `python -m extract`, and of its housekeeping commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class DetectorSpec:
    """Which detector to load, and where it runs.

    Attributes:
        detector: FRAMEWORK:MODULE:BUILDER, e.g. torchvision:my_models:mask_rcnn; the builder is called with
            `detector_options` and returns the model.
        weights: The model's state, as .safetensors, or as .pth that holds tensors alone.
        detector_options: KEY=VALUE arguments of the builder; values are read as JSON, else as text.
        device: cpu, cuda, cuda:1 …; auto takes a GPU where there is one.
    """

    detector: str
    weights: Path
    detector_options: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Config(DetectorSpec):
    """Computes a frozen detector's RoI features once and keeps them in a cache. The same command again resumes.

    Example: python -m extract --detector torchvision:benchmarks.minilvis.detector:mask_rcnn
    --weights benchmarks/minilvis/weights/plain.safetensors --split train --images-per-class 10
    --annotations data/minilvis/train.json --images data/minilvis/train --out data/train.zarr

    Attributes:
        annotations: LVIS or COCO annotation file.
        images: Folder that the file names in the annotations are relative to.
        out: The cache to write, a path or an fsspec URL.
        split: A train cache keeps ground-truth boxes, matched foreground and a sample of background; a val cache
            keeps the top proposals, and masks.
        level: What is kept of each RoI: pooled maps (any head can be trained), the embedding before the
            classifier (linear heads only) or the logits alone (methods that need no training).
        train_annotations: File that the class table's training counts come from, if not `annotations`.
        images_per_class: Visit only as many images as give every class so many.
        proposals: Proposals considered per image, best first.
        background: Most background RoIs kept per image of a train cache.
        flip: Probability that an image is mirrored; by default 0.5 for train and 0 for val.
        masks: Keep class-agnostic mask probabilities; by default for val if the detector has them.
        batch_size: Images per forward pass.
        seed: Of the choice of images, mirroring and background.
        overwrite: Replace a cache that is there instead of resuming it.
        estimate: Print what it would take, from one batch, and stop.
    """

    annotations: Path
    images: Path
    out: str
    split: Literal["train", "val"]
    level: Literal["pooled", "embedding", "logits"] = "pooled"
    train_annotations: Path | None = None
    images_per_class: int | None = None
    proposals: int = 1000
    background: int = 64
    flip: float | None = None
    masks: bool | None = None
    batch_size: int = 4
    seed: int = 0
    overwrite: bool = False
    estimate: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and its bound."""
        bounds = {"images_per_class": 1, "proposals": 1, "background": 0, "batch_size": 1, "seed": 0}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}, expected at least {bound}")
        if self.flip is not None and not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability in [0, 1]")


@dataclass(frozen=True)
class InspectConfig:
    """Shows what a cache holds.

    Attributes:
        cache: Path or fsspec URL.
    """

    cache: Positional[str]


@dataclass(frozen=True)
class VerifyConfig:
    """Reads a whole cache, checksums included, and compares its logits with those of the stored features.

    Attributes:
        cache: Path or fsspec URL.
    """

    cache: Positional[str]


@dataclass(frozen=True)
class ExportConfig:
    """Writes a whole cache to one HDF5 file.

    Attributes:
        cache: Path or fsspec URL.
        file: The .h5 file to write.
    """

    cache: Positional[str]
    file: Positional[Path]


@dataclass(frozen=True)
class ImportConfig:
    """Writes a cache from an HDF5 file; docs/format.md says what the file must hold.

    Attributes:
        file: The .h5 file.
        cache: Path or fsspec URL of the cache to write.
        overwrite: Replace a cache that is there.
    """

    file: Positional[Path]
    cache: Positional[str]
    overwrite: bool = False


@dataclass(frozen=True)
class RecallConfig:
    """Average recall of a val cache's proposals, overall and per bin of training instances (paper, Table 3).

    Attributes:
        cache: Path or fsspec URL of a val cache.
        annotations: The annotation file it was extracted with.
        bins: Edges of half-open bins of training instances.
    """

    cache: Positional[str]
    annotations: Path
    bins: tuple[float, ...] = (0, 10, 100, 1000, float("inf"))
