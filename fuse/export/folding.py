"""Folds a calibration into a detector's own classifier: a stock checkpoint that needs none of this library's code."""

from __future__ import annotations

import numpy as np
from torch import nn

from calib.heads import Head, linear_layers
from calib.posthoc import Posthoc
from extract.cache.format import Layers
from extract.detectors.base import Detector

Classifier = tuple[np.ndarray, np.ndarray]
"""Weight (K+1, C) and bias (K+1,) float32, background last."""


def folded_classifiers(detector: Detector, calibrated: Head | Posthoc, tail_mask: np.ndarray | None = None) -> Layers:
    """Returns per stage the weight (K+1, C) and bias (K+1,) that replace the detector's classifier, background last.

    A method of `calib.posthoc` scales and shifts logits, which folds exactly: the checkpoint scores as mode
    "calibrated" does. So does a linear head without `tail_mask`. With `tail_mask`, only the rows of tail classes are
    replaced. The scores then differ from those of mode "cat": `cat` normalises the two classifiers separately, one
    classifier normalises all rows together (docs/results.md has the difference in AP).

    Args:
        detector: with a linear classifier in every stage, its outputs in the order of the classes.
        calibrated: a fitted method of `calib.posthoc`, or a head of type "linear" or "ncm".
        tail_mask: (K,) bool, classes whose rows are replaced; None replaces all rows, background's too.

    Raises:
        ValueError: another type of head, a method with a second factor, a detector whose classifiers are not linear, a
            head for a detector with sigmoid scores, or a method that changes the background of a detector whose other
            outputs are part of it.
    """
    stages = detector.fc_layers("embedding")
    name = detector.description["name"]
    if not stages:
        raise ValueError(f"detector {name}: its classifier is not one linear layer per stage")
    own = [layers[-1] for layers in stages]
    rows = np.ones(detector.num_classes + 1, bool) if tail_mask is None else np.append(tail_mask, False)
    if isinstance(calibrated, Posthoc):
        if calibrated.gate is not None:
            raise ValueError(f"{calibrated.name} multiplies scores, which a classifier cannot: export without --fold")
        if tail_mask is None:
            _check_background(detector, calibrated)
        new = _of_method(calibrated, own)
    else:
        new = _of_head(calibrated, detector)
    return [_replace_rows(*pair, rows) for pair in zip(own, new, strict=True)]


def _check_background(detector: Detector, method: Posthoc) -> None:
    """Raises ValueError if one row cannot express the method's background, because other outputs are part of it."""
    class_map = method.class_map
    if class_map is None or not len(class_map.surplus) or detector.description["activation"] != "softmax":
        return
    scale, shift = (values[:, -1] for values in method.affine)
    if (scale != 1).any() or (shift != 0).any():
        raise ValueError(
            f"{method.name} changes the background logit, of which {len(class_map.surplus)} outputs of detector "
            f"{detector.description['name']} are part: export it without --fold"
        )


def _of_method(method: Posthoc, own: list[Classifier]) -> list[Classifier]:
    """Returns the detector's classifiers with scaled and shifted logits."""
    affine = zip(*method.affine, strict=True)
    return [
        (scale[:, None] * weight, scale * bias + shift)
        for (weight, bias), (scale, shift) in zip(own, affine, strict=True)
    ]


def _of_head(head: Head, detector: Detector) -> list[Classifier]:
    """Returns the last layer of each stage of a linear head."""
    head.check_detector(detector)
    if head.info.kind not in ("linear", "ncm") or head.info.classifier != "linear":
        raise ValueError(f"head is {head.name}: only a linear head has rows that fit the detector's classifier")
    name, activation = detector.description["name"], detector.description["activation"]
    if activation != head.info.activation:
        raise ValueError(
            f"detector {name}: activation is {activation}, a linear head's rows are for {head.info.activation}"
        )
    return [_parameters(linear_layers(stage)[-1]) for stage in head.stages]


def _parameters(layer: nn.Linear) -> Classifier:
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def _replace_rows(own: Classifier, new: Classifier, rows: np.ndarray) -> Classifier:
    return np.where(rows[:, None], new[0], own[0]), np.where(rows, new[1], own[1])
