"""Direct transcriptions of released losses, RoI for RoI and class for class, in float64. They return the mean loss."""

from __future__ import annotations

import numpy as np


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def bce(z, y):
    return -np.log(1 / (1 + np.exp(-z))) if y else -np.log(1 / (1 + np.exp(z)))


def balanced_softmax(logits, labels, counts):
    """`balanced_softmax_loss`; background has the mean count."""
    spc = np.append(counts, counts.mean())
    return np.mean([-np.log(softmax(z + np.log(spc))[y]) for z, y in zip(logits, labels, strict=True)])


def grw(logits, labels, counts, rho):
    """`GRWFastRCNNOutputs`: F.cross_entropy with class weights and reduction "mean"."""
    exp_reweight = 1 / (counts / counts.sum()) ** rho
    weights = np.append(exp_reweight / exp_reweight.sum() * len(counts), 1)
    losses = [-np.log(softmax(z)[y]) for z, y in zip(logits, labels, strict=True)]
    return np.dot(weights[labels], losses) / weights[labels].sum()


def seesaw(logits, labels, counts, p, q, eps=1e-2):
    """mmdetection's `seesaw_ce_loss` on K+1 classes; background neither gives nor takes factors."""
    background, losses = len(counts), []
    for z, i in zip(logits, labels, strict=True):
        scores, factors = softmax(z), np.ones(len(z))
        for j in range(background):
            if j == i or i == background:
                continue
            if counts[j] < counts[i]:
                factors[j] *= (counts[j] / counts[i]) ** p
            ratio = scores[j] / max(scores[i], eps)
            if ratio > 1:
                factors[j] *= ratio**q
        losses.append(-np.log(softmax(z + np.log(factors))[i]))
    return np.mean(losses)


def eql(logits, labels, image_counts, max_images):
    """`EQLFastRCNNOutputs.eql_loss`, and a logit of background that is trained without weights."""
    total = 0.0
    for z, y in zip(logits, labels, strict=True):
        for c in range(len(z)):
            excluded = y != len(image_counts)
            rare = c < len(image_counts) and image_counts[c] < max_images
            total += bce(z[c], c == y) * (1 - excluded * rare * (c != y))
    return total / len(labels)


def federated(logits, labels, classes):
    """detectron2's `sigmoid_cross_entropy_loss` with a federated set of classes, and the logit of background."""
    kept = {*classes, logits.shape[1] - 1}
    return sum(bce(z[c], c == y) for z, y in zip(logits, labels, strict=True) for c in kept) / len(labels)


def bags(logits, labels, bins, weights_of_others):
    """`GSBBoxHeadWith0.loss`, with given weights of the others of each bin; outputs as in `GroupedLinear`."""
    classes = sum(map(len, bins))
    total = np.mean(
        [-np.log(softmax(z[classes : classes + 2])[int(y != classes)]) for z, y in zip(logits, labels, strict=True)]
    )
    for g, members in enumerate(bins):
        losses, weights = [], []
        for z, y in zip(logits, labels, strict=True):
            scores = softmax(np.append(z[members], z[classes + 2 + g]))
            inside = y in members
            losses.append(-np.log(scores[members.index(y) if inside else -1]))
            weights.append(1 if inside else weights_of_others[g])
        if any(y in members for y in labels):
            total += np.dot(losses, weights) / max(sum(weights), 1)
    return total


def merge_score(z, bins):
    """`GSBBoxHeadWith0._merge_score`, background last."""
    classes = sum(map(len, bins))
    binary = softmax(z[classes : classes + 2])
    scores = np.zeros(classes + 1)
    for g, members in enumerate(bins):
        scores[members] = softmax(np.append(z[members], z[classes + 2 + g]))[:-1] * binary[1]
    scores[-1] = binary[0]
    return scores
