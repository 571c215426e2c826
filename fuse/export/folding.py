"""Calibration folded into a detector's own classifier: a stock checkpoint that needs none of this library's code."""

from __future__ import annotations

import numpy as np
import torch

from calib.heads import Head
from calib.posthoc import Posthoc
from extract.cache.format import Layers
from extract.detectors.base import Detector


def folded_classifiers(detector: Detector, calibrated: Head | Posthoc, tail: np.ndarray | None = None) -> Layers:
    """Per stage weights (K+1, C) and biases (K+1,), background last, that take the place of the classifier's.

    A method that rescales or shifts logits (`calib.posthoc`) is folded exactly: the checkpoint scores as mode "calibrated"
    does. So is a linear head without `tail`. With it the head's rows replace those of the tail classes. This is `cat`
    but for one thing: `cat` normalises the two heads separately, one classifier all rows together, so that scores
    differ (the README has the difference in AP).

    Args:
        detector: with a linear classifier in every stage.
        calibrated: a fitted method of `calib.posthoc`, or a head of kind "linear".
        tail: (K,) bool, for a head the classes it speaks for; None for all, and background.

    Raises:
        ValueError: another kind of head, a detector whose classifiers are not linear, or with a head one that scores
            each class by itself.
    """
    stages = detector.fc_layers("embedding")
    if not stages:
        raise ValueError(f"detector {detector.description['name']}: its classifier is not one linear layer per stage")
    own = [layers[-1] for layers in stages]
    if isinstance(calibrated, Posthoc):
        affine = zip(*calibrated.affine, strict=True)
        return [
            (scale[:, None] * weight, scale * bias + shift)
            for (weight, bias), (scale, shift) in zip(own, affine, strict=True)
        ]
    calibrated.check_detector(detector)
    if calibrated.info.kind != "linear":
        raise ValueError(
            f"head is {calibrated.info.kind}: only a linear one has rows that fit the detector's classifier"
        )
    name, activation = detector.description["name"], detector.description["activation"]
    if activation != "softmax":
        raise ValueError(f"detector {name}: activation is {activation}, a linear head's rows are for softmax")
    rows = np.ones(detector.num_classes + 1, bool) if tail is None else np.append(tail, False)
    return [_replaced(*pair, *_last(stage), rows) for pair, stage in zip(own, calibrated.stages, strict=True)]


def _last(stage: torch.nn.Sequential) -> tuple[np.ndarray, np.ndarray]:
    return tuple(parameter.detach().cpu().numpy() for parameter in stage[-1].parameters())


def _replaced(
    weight: np.ndarray, bias: np.ndarray, new_weight: np.ndarray, new_bias: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return np.where(rows[:, None], new_weight, weight), np.where(rows, new_bias, bias)
