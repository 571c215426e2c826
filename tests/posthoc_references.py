"""Direct transcriptions of released code of post-hoc methods, in NumPy, loop for loop."""

from __future__ import annotations

import numpy as np


def norcal_probabilities(logits, counts, method, gamma, calibrate_on, renorm):
    """`CalibrationFastRCNNOutputLayers.predict_probs` of NorCal's code."""
    factor = 1 / counts**gamma if method == "gamma" else (1 - gamma) / (1 - gamma**counts)
    scores = logits.astype(np.float64)
    if calibrate_on == "logits":
        scores[:, :-1] *= factor
        probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    elif calibrate_on == "probs":
        probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        probs[:, :-1] *= factor
    else:
        probs = np.exp(scores)
        probs[:, :-1] *= factor
    return probs / probs.sum(1, keepdims=True) if renorm else probs


def calculate_fractality(cx, cy, classes, num_classes, dims):
    """`calculate_fractality.py` of FRACAL's code, variant box_dim; its curve_fit is a least-squares line."""
    frequencies = np.bincount(classes, minlength=num_classes)
    boxes = []
    for dim in range(1, dims + 1):
        step, occupied = 1 / dim, np.zeros(num_classes)
        for j in range(dim):
            for i in range(dim):
                inside = (cx >= i * step) & (cx < (i + 1) * step) & (cy >= j * step) & (cy < (j + 1) * step)
                occupied += np.bincount(classes[inside], minlength=num_classes) > 0
        boxes.append(occupied)
    grid = np.arange(dims) + 1
    fractality = []
    for k in range(num_classes):
        counted = np.array([boxes[i][k] for i in range(dims)])
        cutoff = frequencies[k] >= grid * grid
        if frequencies[k] < 4:
            fractality.append(1)
        else:
            slope = np.polyfit(np.log(grid)[cutoff], np.log(counted[cutoff]), 1)[0]
            fractality.append(max(slope, 1))
    return np.array(fractality)


def fracal_scores(cls_score, image_counts, num_images, fractal_dimensions, fractal_l, activation):
    """`ConvFCFracalBBoxHead._predict_by_feat_single` of FRACAL's code, variant base10."""
    classes = len(image_counts)
    freqs = np.ones(classes) * 300
    weights = -np.log10(image_counts / num_images) - np.log10(freqs.sum() / freqs)
    cls_score = cls_score.astype(np.float64)
    if activation == "softmax":
        scores = np.exp(cls_score + np.append(weights, 0))
        scores /= scores.sum(1, keepdims=True)
        scores = scores / np.append(fractal_dimensions, 1.0) ** fractal_l
        return scores / scores.sum(1, keepdims=True)
    fractal = fractal_dimensions**fractal_l
    fractal = fractal / fractal.sum()
    fractal_prob = -np.log10(fractal) + np.log10(1 / classes)
    foreground = cls_score[:, :-1]
    scores = _sigmoid(foreground) * _sigmoid(foreground + weights + fractal_prob)
    return np.column_stack([scores, np.zeros(len(scores))])


def _sigmoid(values):
    return 1 / (1 + np.exp(-values))
