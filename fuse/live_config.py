"""The options of the commands on detectors, `predict` and `export`. Imports nothing heavy: it is read first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from extract.config import DetectorSpec
from fuse.scores import Mode

FOLDED_MODES = ("cat", "calibrated")
"""The modes of which there is a checkpoint with folded rows."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions(DetectorSpec):
    """A detector and its calibrated head."""

    head: Path
    """Head made by `python -m calib.train`."""

    out: Path
    """Folder to write."""

    mode: Mode = "cat"
    """How the heads are combined."""

    tail: float = 100
    """The calibrated head speaks for classes with fewer training instances than this."""

    score_threshold: float = 0.0
    """Detections score above it."""

    max_detections: int = 300
    """Detections per image."""

    iou_threshold: float | None = None
    """Boxes of a class that overlap more are suppressed; the detector's own threshold by default."""

    threshold: float = 0.05
    """Of mode cat-thr: calibrated scores below it are dropped."""

    scale: float | None = None
    """Of mode cat-scale: factor of the calibrated scores; by default each image's background ratio."""

    stage_average: Literal["scores", "logits"] | None = None
    """What is averaged over the stages of a cascade; by default as the detector's framework does it."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        if not self.score_threshold >= 0:
            raise ValueError(f"score_threshold is {self.score_threshold}, expected at least 0")
        if self.max_detections < 1:
            raise ValueError(f"max_detections is {self.max_detections}, expected at least 1")
        if self.iou_threshold is not None and not 0 <= self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {self.iou_threshold}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(LiveOptions):
    """Detects in images with a detector and its calibrated head together.

    Example: python -m fuse predict photo.jpg --detector mmdet --config-file htc.py --weights htc.pth --head head
        --out runs/photo --save-images

    Writes predictions.json: LVIS results with file names and class names.
    """

    images: Positional[tuple[Path, ...]]
    """Image files."""

    save_images: bool = False
    """Draw each image twice, as the detector alone sees it and calibrated, into one PNG."""

    shown: int = 10
    """Best detections drawn."""

    detector_options: tuple[str, ...] = ()
    """The framework's own options, as of `python -m extract`."""

    overwrite: bool = False
    """Replace what is in the folder."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        if not self.images:
            raise ValueError("images is empty, expected at least one file")
        if self.shown < 1:
            raise ValueError(f"shown is {self.shown}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(LiveOptions):
    """Gives a calibrated detector back to its framework.

    Example: python -m fuse export --detector detectron2 --config-file cascade.yaml --weights cascade.pth --head head
        --out runs/calibrated

    Writes a checkpoint model.pth of the detector with both heads and what the framework needs to load it: model.yaml
    (detectron2, after `import fuse.plugins.detectron2`), model.py (mmdetection) or calibration.json (torchvision);
    and scores.pt2, a torch program of head and fusion alone.
    """

    fold: bool = False
    """Instead, put a linear head's rows for the tail classes (mode cat), or all of them (mode new), into the detector's
    own classifier: a stock checkpoint that needs no code of this library. The rows then share one normalisation, so
    that scores differ from cat's."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        if self.fold and self.mode not in FOLDED_MODES:
            raise ValueError(f"mode is {self.mode!r}, expected {' or '.join(FOLDED_MODES)} with --fold")
        for name in ("score_threshold", "max_detections", "iou_threshold", "stage_average") if self.fold else ():
            if getattr(self, name) != getattr(ExportConfig, name):
                raise ValueError(f"{name} is {getattr(self, name)}: with --fold the detector's own config decides it")
