"""How a head classifies the RoIs of held-out images while it is trained: accuracies and average precision.

Letters in shapes: `n` RoIs, `S` stages, `K` classes.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from calib.heads import Head
from calib.scoring import instance_counts_of
from extract.class_scores import stage_scores
from extract.data.bins import bin_index, bin_names
from extract.objects import object_rois

if TYPE_CHECKING:
    from extract import RoICache

logger = logging.getLogger(__name__)

MAX_ROIS = 20_000
BACKGROUND_PER_OBJECT = 3
MAX_SCORES = 50_000_000
"""Of a matrix of RoIs and classes, 200 MB."""
MAX_BYTES = 500_000_000
"""Of features."""
ROWS_AT_ONCE = 4096


class HeldOutRoIs:
    """RoIs of held-out images: of each object the one of highest IoU, and a uniform draw of background.

    Attributes:
        labels: (n,) int64, K for background.
        features: (n, S, prod(D)) float16.
    """

    def __init__(self, cache: RoICache, seed: int) -> None:
        """Reads the RoIs of a cache that was extracted with --split holdout; large ones give a sample."""
        row_bytes = np.dtype(np.float16).itemsize * math.prod(cache.fields["features"])
        limit = min(MAX_ROIS, MAX_SCORES // (cache.num_classes + 1), MAX_BYTES // row_bytes)
        rng = np.random.default_rng(seed)
        objects, background = _objects_and_background(cache)
        objects = rng.permutation(objects)[: limit // (1 + BACKGROUND_PER_OBJECT)]
        rows = np.sort(np.concatenate([objects, rng.permutation(background)[: BACKGROUND_PER_OBJECT * len(objects)]]))
        self.labels = cache.take("labels", rows)[:, -1].astype(np.int64)
        self.features = cache.take("features", rows).reshape(len(rows), len(cache.stages), -1)
        self._bins = bin_index(np.array(instance_counts_of(cache)))

    @torch.no_grad()
    def evaluate(self, head: Head) -> dict[str, float]:
        """Returns accuracies on objects and on background, and average precision in points.

        Average precision (AP) of a class ranks all RoIs by its score; those of its objects are right. `AP` is the mean
        over the classes with objects, followed by the means of the bins of training instances. No box is regressed and
        nothing is suppressed, and classes that an image is not annotated for count as absent: it is no AP of
        detections, but rises and falls with it.
        """
        device, scores = next(head.parameters()).device, []
        for begin in range(0, len(self.labels), ROWS_AT_ONCE):
            part = torch.from_numpy(self.features[begin : begin + ROWS_AT_ONCE]).to(device)
            logits = torch.stack([head(part[:, stage].float(), stage) for stage in range(part.shape[1])], 1)
            scores.append(stage_scores(logits.float().cpu().numpy(), head.info.stage_average, head.info.activation))
        return self.figures(np.concatenate(scores))

    def figures(self, scores: np.ndarray) -> dict[str, float]:
        """Returns the figures of `evaluate` for scores (n, K+1)."""
        right, is_object = scores.argmax(axis=1) == self.labels, self.labels < scores.shape[1] - 1
        ap = average_precision(scores[:, :-1], self.labels)
        of_bins = {f"AP{name}": ap[self._bins == i] for i, name in enumerate(bin_names())}
        means = {
            name: 100 * float(np.nanmean(of)) for name, of in {"AP": ap, **of_bins}.items() if np.isfinite(of).any()
        }
        accuracies = {"fg_accuracy": right[is_object], "bg_accuracy": right[~is_object]}
        return {name: float(of.mean()) for name, of in accuracies.items() if len(of)} | means


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the mean precision at the objects of each class, (K,) float64; NaN for classes without objects.

    Args:
        scores: (n, K); of equal scores, the wrong ones come first.
        labels: (n,) classes; others than 0…K-1 are no objects.
    """
    ap = np.full(scores.shape[1], np.nan)
    for label in np.unique(labels[(labels >= 0) & (labels < scores.shape[1])]).tolist():
        right = -np.sort(-scores[labels == label, label])
        wrong = np.sort(scores[labels != label, label])
        rank = np.arange(1, len(right) + 1)
        ap[label] = (rank / (rank + len(wrong) - np.searchsorted(wrong, right))).mean()
    return ap


def held_out_rois(cache: RoICache, head: Head, seed: int) -> HeldOutRoIs | None:
    """Returns the RoIs to watch a head on; None, with a warning, where it cannot score them or none is an object."""
    try:
        head.check_cache(cache)
    except ValueError as error:
        logger.warning("the run is not watched on held-out images: %s", error)
        return None
    found = HeldOutRoIs(cache, seed)
    if not (found.labels < cache.num_classes).any():
        logger.warning("the run is not watched on held-out images: no RoI of %s matches an object", cache.url)
        return None
    return found


def _objects_and_background(cache: RoICache) -> tuple[np.ndarray, np.ndarray]:
    """Returns packed rows of the last stage: of each object that of highest IoU, and all background."""
    labels = cache.read("labels")[:, -1]
    return object_rois(cache, labels, -1), np.flatnonzero(labels == cache.num_classes)
