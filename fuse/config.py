"""The options of the commands on caches and results. Imports nothing heavy: it is read first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from extract.data.bins import edges
from fuse.scores import HEADLESS, RowMode

DETECTIONS = "detections.json"
"""The LVIS results in a folder that a command writes."""
MergeMethod = Literal["nms", "wbf"]
"""How `merge` joins detections."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How detections are evaluated."""

    annotations: Path
    """LVIS annotation file of the images evaluated on."""

    iou_types: tuple[Literal["segm", "bbox"], ...] = ()
    """Mask AP, box AP or both; by default mask AP where there are masks, else box AP."""

    bins: tuple[float, ...] = (10, 100, 1000)
    """Edges between the bins of training instances."""

    max_detections: int = 300
    """Detections per image."""

    fixed: bool = False
    """Fixed AP: the best 10,000 detections per class over the data set and no cap per image."""

    engine: Literal["hotcoco", "lvis"] = "hotcoco"
    """What computes precision and recall; lvis is the official package, slow."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        if self.max_detections < 1:
            raise ValueError(f"max_detections is {self.max_detections}, expected at least 1")
        edges(self.bins)

    @property
    def edges(self) -> tuple[float, ...]:
        """The bins' edges with both ends."""
        return edges(self.bins)


@dataclass(frozen=True, kw_only=True)
class FusionOptions(EvaluationOptions):
    """How two heads' scores become detections."""

    cache: str
    """Val cache made by `python -m extract --split val`: a path or an fsspec URL."""

    out: Path
    """Folder to write."""

    head: Path | None = None
    """Head made by `python -m calib.train`."""

    tail: float = 100
    """The calibrated head speaks for classes with fewer training instances than this."""

    iou_threshold: float | None = None
    """Boxes of a class that overlap more are suppressed; the detector's own threshold by default."""

    threshold: float = 0.05
    """Of mode cat-thr: calibrated scores below it are dropped."""

    scale: float | None = None
    """Of mode cat-scale: factor of the calibrated scores; by default each image's background ratio."""

    stage_average: Literal["scores", "logits"] | None = None
    """What is averaged over the stages of a cascade; by default as the detector's framework does it."""

    overwrite: bool = False
    """Replace what is in the folder."""


@dataclass(frozen=True, kw_only=True)
class Config(FusionOptions):
    """Detects with the original and the calibrated head together, and evaluates beside the original alone.

    Example: python -m fuse --cache val.zarr --head head --annotations val.json --out runs/cat --mode cat
        --tail 100

    Writes detections.json (LVIS results), metrics.csv, per_class.csv and report.html.
    """

    mode: RowMode = "cat"
    """How the heads are combined; props-gt is the oracle of the paper's Table 4."""

    score_threshold: float = 0.0
    """Detections score above it."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        if self.head is None and self.mode not in HEADLESS:
            raise ValueError(f"mode is {self.mode!r}, which needs a calibrated head: give --head")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(FusionOptions):
    """One table of every combination in the paper's Tables 2, 4, 6 and 7, from one read of the cache.

    Example: python -m fuse sweep --cache val.zarr --head head --annotations val.json --out runs/sweep

    Writes metrics.csv, per_class.csv and report.html.
    """


@dataclass(frozen=True, kw_only=True)
class FileOptions(EvaluationOptions):
    """How results that lie in files are evaluated."""

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
class EvaluateConfig(FileOptions):
    """Evaluates a file of LVIS results.

    Example: python -m fuse evaluate runs/cat/detections.json --annotations val.json --cache val.zarr
    """

    detections: Positional[Path]
    """LVIS results."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig(FileOptions):
    """Joins the results of several detectors, or of one at several scales and mirrored (Tables 9 and 10).

    Example: python -m fuse merge runs/a/detections.json runs/b/detections.json --annotations val.json
        --cache val.zarr --out runs/both

    Evaluates the parts and what they are together. Writes detections.json (LVIS results), metrics.csv,
    per_class.csv and report.html.
    """

    detections: Positional[tuple[Path, ...]]
    """Files of LVIS results, two or more; of equals the detection of the earlier file is kept."""

    out: Path
    """Folder to write."""

    method: MergeMethod = "nms"
    """Suppression class by class, or weighted box fusion, which needs tailcal[ensemble] and drops masks."""

    weights: tuple[float, ...] = ()
    """How much each file counts, beside the one that counts most; by default all alike."""

    iou_threshold: float = 0.5
    """Boxes of a class that overlap more are one object."""

    overwrite: bool = False
    """Replace what is in the folder."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        if len(self.detections) < 2:
            raise ValueError(f"detections is {len(self.detections)} file, expected at least 2 files")
        files = [path.resolve() for path in self.detections]
        twice = [path for path, file in zip(self.detections, files, strict=True) if files.count(file) > 1]
        if twice:
            raise ValueError(f"detections has {twice[0]} more than once, expected different files")
        if (self.out / DETECTIONS).resolve() in files:
            raise ValueError(f"out is {self.out}, whose {DETECTIONS} is one of the files to merge: give another folder")
