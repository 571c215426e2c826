"""Trained two-stage detectors behind one interface. Only a framework's own modules import it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from extract.config import DetectorSpec
from extract.detectors.base import Detector
from extract.utils.optional import require

FRAMEWORKS = {
    "torchvision": "pip install 'tailcal[torchvision]' brings it",
    "detectron2": "it is not on PyPI: install it from its repository; pip install 'tailcal[detectron2]' brings "
    "what it needs besides",
    "mmdet": "pip install 'tailcal[mmdetection]' brings it; mmcv must be the one with compiled operations",
}
"""Module under `extract.detectors` and package that is imported → how to install it."""


def load_detector(spec: DetectorSpec) -> Detector:
    """Builds the detector and loads its weights.

    Raises ValueError naming the spec's part that is wrong, FileNotFoundError, or ImportError with the package to
    install.
    """
    framework, _, target = spec.detector.partition(":")
    files = {name: path and Path(path) for name in ("weights", "config_file") for path in [getattr(spec, name)]}
    return _adapter(spec.detector, framework).load(target, replace(spec, **files))


def registered_dataset(detector: str, name: str) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a data set that the detector's framework knows by name, None if none."""
    framework, _, target = detector.partition(":")
    lookup = getattr(_adapter(detector, framework), "registered_dataset", None)
    return lookup(target, name) if lookup else None


def _adapter(detector: str, framework: str) -> Any:
    if framework not in FRAMEWORKS:
        raise ValueError(
            f"detector {detector!r}: framework {framework!r}, expected {', '.join(FRAMEWORKS)}, "
            "as in torchvision:my_models:build"
        )
    require(framework, remedy=FRAMEWORKS[framework])
    # A framework may be there without what it is made of: the adapter imports all that it uses of it.
    return require(f"extract.detectors.{framework}", remedy=FRAMEWORKS[framework])
