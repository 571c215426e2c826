"""Learned fusion: how far each class leans on each of several classifiers, fitted on held-out training images.

The score of class c is σ(Σ_j w_cj·log s_cj + w_c,o·o + w_c,1) of the scores s_j of J classifiers and the objectness o.
The weights of a class are those of its bin and of its training count, plus an own deviation: w_c = A·f_c + B_bin(c) +
D_c with f_c = (1, log₁₀ N_c − 2). They minimise the cross-entropy of RoIs of known label, with Gaussian priors on A
(around the geometric mean of the scores), B and D. A class without held-out objects has no evidence to deviate by, and
has the weights of its bin. This is stacking (Wolpert, "Stacked Generalization", 1992) with a hierarchical prior.

Letters in shapes: `R` RoIs, `K` classes, `J` classifiers, `P` pairs of a RoI and a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from calib.scoring import Original, Scorer, instance_counts_of
from extract.cache.reader import RoICache
from extract.data.bins import BINS, bin_index
from extract.utils.progress import FIRST_LINE, progress_bar
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.ground_truth import GroundTruth, contains
from fuse.learned import LearnedFusion, log_scores, logit

PENALTIES = (0.1, 10.0), 1.0, 10.0
"""Precisions of the priors on A's columns, B and D. The slope's keeps it from extrapolating far between counts."""
ROI_WEIGHT = 0.1
"""Weight of a RoI in the likelihood: an object has about ten that say the same."""
MIN_SCORE = 0.01
"""Pairs are fitted to where a classifier's score is above this. That a pair is chosen depends on its scores alone and
not on its target, so that the choice does not bias the weights."""
ITERATIONS = 60


class Pairs(NamedTuple):
    """P pairs of a RoI and a class that an annotation file decides: rows, classes (P,) int64, and targets (P,) bool."""

    rows: np.ndarray
    classes: np.ndarray
    targets: np.ndarray


def fit_learned(
    cache: RoICache, annotations: EvaluationDataset, scorers: Sequence[Scorer], protocol: str
) -> LearnedFusion:
    """Fits the weights on the images of a cache of held-out images.

    Args:
        cache: extracted with --split holdout.
        annotations: of its images.
        scorers: that were not fitted to these images.
        protocol: "federated", where only annotated pairs of an image and a class count, or "exhaustive".

    Raises ValueError if no RoI matches an object.
    """
    # Objectness is an input of its own.
    scorers = [replace(one, with_objectness=False) if isinstance(one, Original) else one for one in scorers]
    known, partial = _annotated(cache, annotations, protocol)
    parts, inputs = [], []
    for position in progress_bar(range(len(cache)), desc="fit learned", unit="image", delay=FIRST_LINE):
        rois = cache.image_at(position, {"features"})
        scores = [scorer.scores(rois)[:, :-1] for scorer in scorers]
        pairs = _decided_pairs(rois.labels[:, -1], np.maximum.reduce(scores), known[position], partial[position])
        columns = [log_scores(one[pairs.rows, pairs.classes]) for one in scores]
        columns += [logit(rois.objectness)[pairs.rows], np.ones(len(pairs.rows), np.float32)]
        parts.append(pairs)
        inputs.append(np.stack(columns, 1))
    classes, targets = (np.concatenate([getattr(part, name) for part in parts]) for name in ("classes", "targets"))
    if not targets.any():
        raise ValueError(f"{cache.url}: no RoI matches an annotated object, there is nothing to fit")
    counts = cache.classes["instance_count"].to_numpy()
    weights = _fit(np.concatenate(inputs), classes, targets, counts)
    return LearnedFusion(tuple(scorers), weights, instance_counts_of(cache), cache.class_map)


def _annotated(cache: RoICache, annotations: EvaluationDataset, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns two (N, K) bool: whether a class is annotated in an image at all, and there only in part."""
    image_ids, category_ids = cache.images["image_id"].to_numpy(), cache.classes["category_id"].to_numpy()
    shape = len(image_ids), len(category_ids)
    if protocol == "exhaustive":
        return np.ones(shape, bool), np.zeros(shape, bool)
    gt = GroundTruth.from_dataset(annotations)
    cells = gt.cells_of(np.repeat(image_ids, shape[1]), np.tile(category_ids, shape[0]))
    known = contains(np.union1d(gt.cells, gt.cells_listed("neg_category_ids")), cells)
    return known.reshape(shape), contains(gt.cells_listed("not_exhaustive_category_ids"), cells).reshape(shape)


def _decided_pairs(labels: np.ndarray, best: np.ndarray, known: np.ndarray, partial: np.ndarray) -> Pairs:
    """Returns the pairs of one image; `best` (R, K) are the highest scores, the others as of `_annotated`."""
    rows, classes = np.nonzero((best > MIN_SCORE) & known)
    targets = labels[rows] == classes
    decided = targets | (~partial[classes] & (labels[rows] >= 0))
    return Pairs(rows[decided], classes[decided], targets[decided])


def _fit(inputs: np.ndarray, classes: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the weights (J+2, K) of largest posterior, by L-BFGS, for inputs (P, J+2) of pairs."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    x, y, c = torch.from_numpy(inputs), torch.from_numpy(targets).float(), torch.from_numpy(classes)
    features = np.stack([np.ones(len(counts)), np.log10(np.maximum(counts, 1)) - 2], 1)
    f, bins = torch.from_numpy(features).float(), torch.from_numpy(bin_index(counts, BINS))
    penalty_a, penalty_b, penalty_d = torch.tensor(PENALTIES[0])[:, None], *PENALTIES[1:]
    center = torch.zeros(f.shape[1], x.shape[1])
    center[0, :-2] = 1 / (x.shape[1] - 2)
    shared, of_bins, own = (
        start.clone().requires_grad_()
        for start in (center, torch.zeros(len(BINS) - 1, x.shape[1]), torch.zeros(len(counts), x.shape[1]))
    )
    optimizer = torch.optim.LBFGS([shared, of_bins, own], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def weights() -> torch.Tensor:
        return f @ shared + of_bins[bins] + own

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        z = (x * weights()[c]).sum(1)
        prior = (penalty_a * (shared - center).square()).sum() / 2
        prior = prior + penalty_b / 2 * of_bins.square().sum() + penalty_d / 2 * own.square().sum()
        value = (ROI_WEIGHT * binary_cross_entropy_with_logits(z, y, reduction="sum") + prior) / len(z)
        value.backward()
        return value

    optimizer.step(loss)
    return weights().detach().T.contiguous().numpy()
