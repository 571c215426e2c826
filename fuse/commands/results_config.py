"""The options of `python -m fuse evaluate` and `python -m fuse merge`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from fuse.commands.config import DETECTIONS_FILE
from fuse.commands.mask_config import MaskConfig, MergeMaskConfig
from fuse.config import ErrorsConfig, EvaluationConfig, MergeMethod
from fuse.defaults import IOU_THRESHOLD


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(ErrorsConfig, EvaluationConfig):
    """How result files are evaluated."""

    cache: str | None = None
    """A cache, for its class table with training counts."""

    train_annotations: Path | None = None
    """Or the training annotations, to count them."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the options."""
        super().__post_init__()
        if (self.cache is None) == (self.train_annotations is None):
            raise ValueError("give either --cache or --train-annotations, for the training counts of the classes")


@dataclass(frozen=True, kw_only=True)
class _ResultFile:
    detections: Positional[Path]  # of a base class: before the detector's own options
    """LVIS results."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ResultsConfig, MaskConfig, _ResultFile):
    """Evaluates a file of LVIS results.

    Example: python -m fuse evaluate runs/cat/detections.json --annotations val.json --cache val.zarr

    Results without masks get those that are painted beside the cache; --detector paints those that are missing.
    """

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        ResultsConfig.__post_init__(self)
        MaskConfig.__post_init__(self)
        if self.images is not None and self.detector is None:
            raise ValueError("images is given without --detector, which paints masks")
        _require_cache(self)


@dataclass(frozen=True, kw_only=True)
class MergeConfig(ResultsConfig, MergeMaskConfig):
    """Merges the results of several detectors (Table 9), or of one detector with test-time augmentation (Table 10).

    Example: python -m fuse merge runs/a/detections.json runs/b/detections.json --annotations val.json
        --cache val.zarr --out runs/both

    Evaluates each file and the merged results. Writes detections.json (LVIS results), metrics.csv, per_class.csv and
    report.html.
    """

    detections: Positional[tuple[Path, ...]]
    """Files of LVIS results, two or more; of equal detections that of the earlier file is kept."""

    out: Path
    """Folder to write."""

    method: MergeMethod = "nms"
    """Per-class NMS, or weighted box fusion, which needs tailcal[ensemble] and makes new boxes without masks."""

    weights: tuple[float, ...] = ()
    """Weight of each file, relative to the largest; by default all are equal."""

    iou_threshold: float = IOU_THRESHOLD
    """Boxes of a class that overlap more are one object."""

    overwrite: bool = False
    """Replace what is in the folder."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        MergeMaskConfig.__post_init__(self)
        _require_cache(self)
        if len(self.detections) < 2:
            raise ValueError(f"detections is {len(self.detections)} file, expected at least 2 files")
        files = [path.resolve() for path in self.detections]
        twice = [path for path, file in zip(self.detections, files, strict=True) if files.count(file) > 1]
        if twice:
            raise ValueError(f"detections has {twice[0]} more than once, expected different files")
        if (self.out / DETECTIONS_FILE).resolve() in files:
            raise ValueError(
                f"out is {self.out}, whose {DETECTIONS_FILE} is one of the files to merge: give another folder"
            )


def _require_cache(config: EvaluateConfig | MergeConfig) -> None:
    """Raises ValueError for a detector that shall paint masks, without the cache that they are kept beside."""
    if config.detector is not None and config.cache is None:
        raise ValueError("detector is given without --cache: the masks that it paints are kept beside a cache")
