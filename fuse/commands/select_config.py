"""The options of `python -m fuse select`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Suppress

from fuse.config import EvaluationConfig
from fuse.selection.grids import POSTHOC, TRAINED


@dataclass(frozen=True, kw_only=True)
class SelectConfig(EvaluationConfig):
    """Chooses among all methods on held-out training images, and compares the chosen ones on val.

    Example: python -m fuse select --cache val.zarr --train train.zarr --holdout holdout.zarr
        --annotations val.json --train-annotations train.json --out runs/select

    Every method is tried with its hyperparameters and in every fusion mode, on the images of --holdout, which trained
    heads do not see. The best setting of each is then fitted to all of --train and evaluated on val, once. Writes
    selection.json (what was tried, chosen and why), metrics.csv, per_class.csv, report.html, heads/ and learned/, the
    learned fusion. The same command again takes the heads that are there.
    """

    cache: str
    """Val cache to compare on: a path or an fsspec URL. Nothing is chosen by it."""

    train: str
    """Train cache of the same detector and feature level."""

    holdout: str
    """Cache made with --split holdout, to choose on."""

    train_annotations: Path
    """Annotation file that train and holdout were extracted with."""

    out: Path
    """Folder to write."""

    methods: tuple[str, ...] = ()
    """Methods to try; by default all that the caches' feature level serves. `python -m calib --list` describes them."""

    steps: tuple[int, ...] = (500, 1500)
    """Numbers of steps that trained methods are tried with."""

    masks: Literal["auto", "none"] = "auto"
    """auto: mask AP where the caches hold masks, else box AP; none: box AP."""

    images: Path | None = None
    """Folder of the images of val, for the gallery of the report."""

    seed: int = 0
    """Seed of training."""

    fixed_ap: Suppress[bool] = False  # the cap per image is part of what a detector is chosen for

    overwrite: bool = False
    """Replace what is in the folder."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        super().__post_init__()
        known = [*POSTHOC, *TRAINED]
        if unknown := [name for name in self.methods if name not in known]:
            raise ValueError(f"methods has {unknown[0]!r}, expected some of {', '.join(known)}")
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps is {self.steps}, expected numbers of at least 1")
