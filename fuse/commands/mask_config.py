"""The options of the commands that paint masks after detection; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Suppress

from extract.config import DetectorSpec, Precision


@dataclass(frozen=True, kw_only=True)
class MaskConfig(DetectorSpec):
    """Where masks come from, and which detector paints those that a cache cannot hold."""

    masks: Literal["auto", "none"] = "auto"
    """auto: the masks in the cache, or those painted after detection and kept beside it; none: no masks, box AP."""

    detector: str | None = None  # type: ignore[assignment]  # masks need no detector where all are painted
    """The detector that made the cache, as in `python -m extract`, with its --weights, --config-file and options: it
    paints masks of one class each, which a cache cannot hold."""

    images: Path | None = None
    """Folder of the images, for painting masks and for the gallery of the report; datasets of detectron2's catalog have
    a default for painting."""

    allow_outside: bool = False
    """Read images whose file names in the annotations lead out of `images`, as ../ and absolute paths do."""

    precision: Suppress[Precision] = "fp32"  # masks are painted in that of the cache

    def __post_init__(self) -> None:
        """Raises ValueError naming the option that is missing."""
        given = [name for name in ("weights", "config_file", "detector_options") if getattr(self, name)]
        if self.detector is None and given:
            raise ValueError(f"{given[0]} is given without --detector, which paints masks")


@dataclass(frozen=True, kw_only=True)
class MergeMaskConfig:
    """`MaskConfig` for `fuse merge`, whose --weights are those of the results."""

    masks: Literal["auto", "none"] = "auto"
    """auto: the masks of the files, and those that --detector paints where there are none; none: no masks, box AP."""

    detector: str | None = None
    """The detector of --cache, as in `python -m extract`, to paint the masks of results and merged boxes that have
    none."""

    detector_weights: Path | None = None
    """Its trained weights."""

    config_file: Path | None = None
    """Its config file."""

    detector_options: tuple[str, ...] = ()
    """The framework's own options, as in `python -m extract`."""

    images: Path | None = None
    """Folder of the images, for painting masks and for the gallery of the report; datasets of detectron2's catalog have
    a default for painting."""

    allow_outside: bool = False
    """Read images whose file names in the annotations lead out of `images`, as ../ and absolute paths do."""

    device: str = DetectorSpec.device
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option that is missing."""
        self.mask_config()

    def mask_config(self) -> MaskConfig:
        """Returns the options as those of the other commands."""
        return MaskConfig(
            masks=self.masks,
            detector=self.detector,
            weights=self.detector_weights,
            config_file=self.config_file,
            detector_options=self.detector_options,
            images=self.images,
            allow_outside=self.allow_outside,
            device=self.device,
        )
