"""A calibrated detector given back: to its framework, as a torch program, or folded into a stock checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from calib.head_io import load_head
from calib.heads import Head
from calib.posthoc import Posthoc
from extract.detectors import load_detector
from extract.detectors.base import Detector
from extract.utils.files import replacing, write_bytes
from fuse.export.folding import folded_classifiers
from fuse.export.module import CalibratedScores, save_program
from fuse.live_config import ExportConfig
from fuse.plugins import Calibration
from fuse.scores import tail_classes

_LOG = logging.getLogger(__name__)
PROGRAM = "scores.pt2"
WEIGHTS = "model.pth"


def export(config: ExportConfig) -> None:
    """Writes what `ExportConfig` describes.

    What the framework's config describes is written before it, so that an export that was interrupted has no config,
    and can be repeated.

    Raises ValueError if the head is another detector's, if `out` holds an export already, or if a head cannot be
    folded.
    """
    weights, program = config.out / WEIGHTS, config.out / PROGRAM
    if weights.exists() and (config.fold or not program.exists()):  # without a program they are not of this command
        raise ValueError(f"{weights}: exists; give another folder")
    detector = load_detector(config)
    head = load_head(config.head)
    head.check_detector(detector)
    tail = tail_classes(np.array(head.info.instance_counts), config.tail)
    if config.fold:
        export_folded(detector, head, weights, None if config.mode == "calibrated" else tail)
        _LOG.info("%s loads with the detector's own config", weights)
        return
    plugin = _plugin(detector)
    last = config.out / plugin.CONFIG
    if last.exists():
        raise ValueError(f"{last}: exists; give another folder")
    options, scores = _calibration(config, detector, head, tail)
    content = plugin.config_content(config, options, config.out)
    added = {f"calibration.{name}": value for name, value in scores.state_dict().items()}
    save_program(scores, head.info.feature_shape, program)
    _save({**detector.model.state_dict(), **added}, detector, weights)
    write_bytes(last, content)
    _LOG.info("%s: %s", config.out, plugin.__doc__.strip().split("\n")[0])


def export_folded(
    detector: Detector, calibrated: Head | Posthoc, path: str | Path, tail: np.ndarray | None = None
) -> None:
    """Writes `folded_classifiers` as a checkpoint that the detector's framework loads with its own config.

    Args and errors as of `folded_classifiers`; `path` is replaced.
    """
    _save(detector.state_with(folded_classifiers(detector, calibrated, tail)), detector, path)


def _calibration(
    config: ExportConfig, detector: Detector, head: Head, tail: np.ndarray
) -> tuple[Calibration, CalibratedScores]:
    options = Calibration.from_head(
        head,
        detector.description,
        mode=config.mode,
        threshold=config.threshold,
        scale=config.scale or 0.0,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        average=config.stage_average,
        iou_threshold=config.iou_threshold,
    )
    scores = options.module().eval().requires_grad_(False)
    scores.stages.load_state_dict(head.stages.state_dict())
    scores.tail.copy_(torch.from_numpy(tail))
    return options, scores


def _plugin(detector: Detector) -> ModuleType:
    return import_module(f"fuse.plugins.{detector.description['framework']}")


def _save(state: Mapping[str, torch.Tensor], detector: Detector, path: str | Path) -> None:
    checkpoint = _plugin(detector).checkpoint({name: value.cpu() for name, value in state.items()})
    with replacing(path) as partial:
        torch.save(checkpoint, partial)
