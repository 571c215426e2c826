"""The options of `fuse predict` and of `fuse export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Suppress

from extract.config import DetectorSpec, Precision
from fuse.config import ClassifierConfig, FusionConfig
from fuse.scores import ScoreMode

FOLDED_MODES = ("cat", "calibrated")
"""Modes that can be folded into the detector's own classifier."""


@dataclass(frozen=True, kw_only=True)
class LiveConfig(DetectorSpec, ClassifierConfig, FusionConfig):
    """What `fuse predict` and `fuse export` share: a detector, a classifier and fusion."""

    out: Path
    """Folder to write."""

    mode: ScoreMode = FusionConfig.mode  # type: ignore[assignment]  # the default is one of these modes
    """How the two classifiers are combined: a mode of `fuse.fuse_scores`."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        FusionConfig.__post_init__(self)
        ClassifierConfig.__post_init__(self)
        if self.head is None and self.method is None:
            raise ValueError("a calibrated detector needs a calibrated classifier: give --head or --method")
        if self.method is not None and self.fit_cache is None:
            raise ValueError(f"method is {self.method!r}: give --fit-cache, a cache of the detector to fit it on")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(LiveConfig):
    """Detects in images with a detector and its calibrated classifier together. The same command again resumes.

    Example: python -m fuse predict --images photo.jpg photos/ --detector mmdet --config-file htc.py
        --weights htc.pth --head head --out runs/photos --save-images

    Example: python -m fuse predict --images coco/ --annotations lvis_v1_val.json --detector detectron2
        --config-file cascade.yaml --head head --out runs/val INPUT.MIN_SIZE_TEST 1200

    Writes predictions.json: LVIS results with file names and class names.
    """

    images: tuple[Path, ...] = ()
    """Image files and folders, in which images are found at any depth; those of a dataset in detectron2's catalog
    by default."""

    annotations: Path | None = None
    """LVIS or COCO annotation file, or the name of a dataset in detectron2's catalog: only the images that it names
    are read, and results have its image ids, as `fuse evaluate` needs them."""

    save_images: bool = False
    """Draw the detections of the original and of the calibrated detector side by side, one PNG per image."""

    max_drawn: int = 10
    """Detections drawn per side, best first."""

    changed_only: bool = False
    """Of those, draw only what the other side has not: no detection of the same class with an IoU of at least 0.5."""

    strict: bool = False
    """Refuse annotations of which something would be left out or changed, in place of a warning."""

    overwrite: bool = False
    """Replace predictions in the folder instead of resuming them."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        if not self.images and self.annotations is None:
            raise ValueError("images is empty, expected at least one file or folder")
        if self.max_drawn < 1:
            raise ValueError(f"max_drawn is {self.max_drawn}, expected at least 1")
        if self.changed_only and not self.save_images:
            raise ValueError("changed_only is given without --save-images, whose drawings it is about")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(LiveConfig):
    """Exports a calibrated detector to its framework.

    Example: python -m fuse export --detector detectron2 --config-file cascade.yaml --weights cascade.pth --head head
        --out runs/calibrated

    Writes a checkpoint model.pth of the detector with both classifiers and what the framework needs to load it:
    model.yaml (detectron2, after `import fuse.plugins.detectron2`), model.py (mmdetection) or calibration.json
    (torchvision); and scores.pt2, a torch program of the calibrated classifier and the fusion alone.
    """

    precision: Suppress[Precision] = "fp32"  # of the weights that are written

    fold: bool = False
    """Instead, fold a linear head or a method into the detector's own classifier, its rows of the tail classes (mode
    cat) or all rows (mode calibrated): a stock checkpoint that needs no code of this library. One softmax then
    normalises all rows, so that scores differ from those of cat."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        if self.fold and self.mode not in FOLDED_MODES:
            raise ValueError(f"mode is {self.mode!r}, expected {' or '.join(FOLDED_MODES)} with --fold")
        for name in ("score_threshold", "max_detections", "iou_threshold", "stage_average") if self.fold else ():
            if getattr(self, name) != getattr(ExportConfig, name):
                raise ValueError(f"{name} is {getattr(self, name)}: with --fold the detector's own config decides it")
