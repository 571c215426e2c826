"""The options of `python -m fuse` and of `fuse sweep`; `live_config`, `results_config` and `select_config` have others.

The command line reads these modules first, so they import nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Suppress

from fuse.commands.mask_config import MaskConfig
from fuse.config import ClassifierConfig, ErrorsConfig, EvaluationConfig, FusionConfig
from fuse.scores import FusionMode

DETECTIONS_FILE = "detections.json"
"""The LVIS results in the folder of a command."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig(ErrorsConfig, EvaluationConfig, ClassifierConfig, FusionConfig, MaskConfig):
    """What `fuse` and `fuse sweep` share: a val cache, a classifier, fusion and evaluation."""

    cache: str
    """Val cache made by `python -m extract --split val`: a path or an fsspec URL."""

    out: Path
    """Folder to write."""

    memory_limit: float | None = None
    """Bytes of memory, such as 8e9, that the process may take: if need be, fewer images are worked on at a time.
    Refused before work starts if too little."""

    overwrite: bool = False
    """Replace what is in the folder."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        for base in (FusionConfig, ClassifierConfig, EvaluationConfig, MaskConfig):
            base.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class Config(CacheConfig):
    """Detects with the original and the calibrated classifier together, and evaluates beside the original alone.

    Example: python -m fuse --cache val.zarr --head head --annotations val.json --out runs/cat --mode cat
        --tail 100

    Example: python -m fuse --cache val.zarr --method norcal --gamma 0.6 --annotations val.json --out runs/norcal
        --mode calibrated

    Writes detections.json (LVIS results), metrics.csv, per_class.csv and report.html.
    """

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        self.require_classifier(self.mode)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CacheConfig):
    """One table of every combination in the paper's Tables 2, 4, 6 and 7, from one pass over the cache.

    Example: python -m fuse sweep --cache val.zarr --head head --annotations val.json --out runs/sweep

    Writes metrics.csv, per_class.csv and report.html.
    """

    # The rows of the table differ in these two, so the command line does not offer them.
    mode: Suppress[FusionMode] = FusionConfig.mode
    score_threshold: Suppress[float] = FusionConfig.score_threshold
