"""A calibrated detector given back: to its framework, as a torch program, or folded into a stock checkpoint."""

from __future__ import annotations

import logging
from importlib import import_module

import numpy as np
import torch

from calib.heads import Head
from calib.storage import load_head
from extract.detectors import Detector, load_detector
from extract.files import replacing
from fuse.config import ExportConfig
from fuse.folding import folded_classifiers
from fuse.plugins import Calibration
from fuse.program import CalibratedScores, save_program
from fuse.scores import tail_classes

_LOG = logging.getLogger(__name__)
PROGRAM = "scores.pt2"
WEIGHTS = "model.pth"


def export(config: ExportConfig) -> None:
    """Writes what `ExportConfig` describes.

    Raises ValueError if the head is another detector's, if `out` holds something already, or if a head cannot be
    folded.
    """
    if config.out.exists() and any(config.out.iterdir()):
        raise ValueError(f"{config.out}: exists and is not empty; give another folder")
    detector = load_detector(config)
    head = load_head(config.head)
    head.check_detector(detector)
    tail = tail_classes(np.array(head.info.instance_counts), config.tail)
    plugin = import_module(f"fuse.plugins.{detector.description['framework']}")
    if config.fold:
        state = detector.state_with(folded_classifiers(detector, head, tail))
        _save(plugin.checkpoint(state), config)
        _LOG.info("%s loads with the detector's own config", config.out / WEIGHTS)
        return
    options, scores = _calibration(config, detector, head, tail)
    added = {f"calibration.{name}": value for name, value in scores.state_dict().items()}
    plugin.write_config(config, options, config.out)
    save_program(scores, head.info.feature_shape, config.out / PROGRAM)
    _save(plugin.checkpoint({**detector.model.state_dict(), **added}), config)
    _LOG.info("%s: %s", config.out, plugin.__doc__.strip().split("\n")[0])


def _calibration(
    config: ExportConfig, detector: Detector, head: Head, tail: np.ndarray
) -> tuple[Calibration, CalibratedScores]:
    options = Calibration.of(
        head,
        detector.description,
        mode=config.mode,
        threshold=config.threshold,
        scale=config.scale or 0.0,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
    )
    scores = options.module().eval().requires_grad_(False)
    scores.stages.load_state_dict(head.stages.state_dict())
    scores.tail.copy_(torch.from_numpy(tail))
    return options, scores


def _save(checkpoint: dict, config: ExportConfig) -> None:
    with replacing(config.out / WEIGHTS) as partial:
        torch.save(checkpoint, partial)
