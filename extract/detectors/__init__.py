"""Trained two-stage detectors with one interface. Only the modules named after a framework import it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from extract.config import DetectorSpec
from extract.detectors.base import Detector
from extract.utils.optional import require

FRAMEWORKS = {
    "torchvision": "pip install 'tailcal[torchvision]' brings it",
    "detectron2": "it is not on PyPI: install it from its repository; pip install 'tailcal[detectron2]' brings "
    "its dependencies",
    "mmdet": "pip install 'tailcal[mmdetection]' brings it; mmcv must be the one with compiled operations",
}
"""Framework, which names its package and its adapter's module → how to install it."""


def load_detector(spec: DetectorSpec) -> Detector:
    """Builds the detector, loads its weights and prepares it for `spec.precision`.

    Raises ValueError naming the part of the spec that is wrong, FileNotFoundError, or ImportError naming the package
    to install.
    """
    adapter, target = import_adapter(spec.detector)
    weights, config_file = (path and Path(path) for path in (spec.weights, spec.config_file))
    detector = adapter.load(target, replace(spec, weights=weights, config_file=config_file))
    if spec.precision != "fp32":
        from extract.detectors.precision import set_precision  # imports torch, as all adapters do

        set_precision(detector, spec.precision)
    return detector


def registered_dataset(detector: str, name: str) -> tuple[Path, Path] | None:
    """Returns annotation file and image folder of a dataset in the framework's catalog, None if it is not there."""
    adapter, target = import_adapter(detector)
    lookup = getattr(adapter, "registered_dataset", None)
    return lookup(target, name) if lookup else None


def catalog_dataset(path: Path, detector: str = "detectron2") -> tuple[Path, Path] | None:
    """Returns `registered_dataset` of a name that is no file; None for a path, and without detectron2.

    detectron2 is imported only for what may be a name: one without folders and without suffix.

    Args:
        path: of an annotation file, or the name of a dataset in detectron2's catalog.
        detector: one of detectron2 has its project's datasets registered; others stand for detectron2 alone.
    """
    if path.exists() or path.suffix or len(path.parts) > 1:
        return None
    try:
        return registered_dataset(detector if detector.split(":")[0] == "detectron2" else "detectron2", str(path))
    except ImportError:
        return None  # then the name is that of a file which does not exist


def import_adapter(detector: str) -> tuple[ModuleType, str]:
    """Imports the adapter of FRAMEWORK:TARGET, and returns the target as well."""
    framework, _, target = detector.partition(":")
    if framework not in FRAMEWORKS:
        raise ValueError(
            f"detector {detector!r}: framework {framework!r}, expected {', '.join(FRAMEWORKS)}, "
            "as in torchvision:my_models:build"
        )
    require(framework, remedy=FRAMEWORKS[framework])
    # A framework may be installed without its dependencies; the adapter imports those that it needs.
    return require(f"extract.detectors.{framework}", remedy=FRAMEWORKS[framework]), target
