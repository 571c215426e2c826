"""Combinations of the class scores of two classifiers (Wang et al. 2019, Table 6).

Letters in shapes: `R` RoIs, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from fuse.defaults import CAT_THRESHOLD, TAIL

ScoreMode = Literal["original", "calibrated", "avg", "cat", "cat-thr", "cat-scale"]
"""How `fuse_scores` combines two classifiers' scores."""
FusionMode = Literal[ScoreMode, "det", "props-gt"]
"""How `fuse.detect` combines two classifiers; see `fuse.config.FusionConfig`."""
SCORE_MODES: tuple[str, ...] = get_args(ScoreMode)
FUSION_MODES: tuple[str, ...] = get_args(FusionMode)
IMAGE_MODES = ("det", "props-gt")
"""Modes that are no combination of scores: `fuse.fusion` implements them."""
UNCALIBRATED_MODES = ("original", "props-gt")
"""Modes that need no calibrated classifier."""


def fuse_scores(
    original: np.ndarray,
    calibrated: np.ndarray,
    tail_mask: np.ndarray,
    mode: ScoreMode = "cat",
    *,
    cat_threshold: float = CAT_THRESHOLD,
    cat_scale: float | None = None,
) -> np.ndarray:
    """Combines the class scores of the original and the calibrated classifier; rows are not normalised again.

    | mode | foreground | Table 6 |
    |---|---|---|
    | `original` | original scores | mrcnn-r50 |
    | `calibrated` | calibrated scores, background as well | rhead-only |
    | `avg` | mean of both, for every class | rhead-avg |
    | `cat` | calibrated scores for tail classes, original scores for the others | rhead-cat |
    | `cat-thr` | as `cat`; calibrated scores below `cat_threshold` become 0 | rhead-cat-thr |
    | `cat-scale` | as `cat`; calibrated scores times `cat_scale` | rhead-cat-scale |

    In every mode but `calibrated` the background column is the original's. The paper does not define the ratio of
    `cat-scale`. Here it is mean calibrated background over mean original background, which scales down a head that
    predicts less background, as a head trained on balanced RoIs does. `cat_scale=None` computes it per image;
    `background_ratio` computes one ratio for a dataset.

    Args:
        original, calibrated: (R, K+1) scores, background last.
        tail_mask: (K,) bool, tail classes.
        mode: one of `SCORE_MODES`.
        cat_threshold: of `cat-thr`.
        cat_scale: of `cat-scale`.

    Returns:
        (R, K+1) float32, a new array.

    Raises:
        ValueError: an unknown mode or shapes that differ.
    """
    original, calibrated = (np.ascontiguousarray(scores, np.float32) for scores in (original, calibrated))
    tail_mask = np.asarray(tail_mask)
    _check_arguments(original, calibrated, tail_mask, mode)
    return COMBINATIONS[mode](original, calibrated, tail_mask, cat_threshold, cat_scale)


def _original(original: np.ndarray, *_: object) -> np.ndarray:
    return original.copy()


def _calibrated(original: np.ndarray, calibrated: np.ndarray, *_: object) -> np.ndarray:
    return calibrated.copy()


def _avg(original: np.ndarray, calibrated: np.ndarray, *_: object) -> np.ndarray:
    fused = original + calibrated
    fused /= 2
    fused[:, -1] = original[:, -1]
    return fused


def _cat(original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, *_: object) -> np.ndarray:
    return _replace_tail(original, calibrated, tail_mask)


def _cat_thr(
    original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, threshold: float, _: object
) -> np.ndarray:
    return _replace_tail(original, calibrated, tail_mask, threshold=threshold)


def _cat_scale(
    original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, _: object, scale: float | None
) -> np.ndarray:
    scale = background_ratio(original, calibrated) if scale is None else scale
    return _replace_tail(original, calibrated, tail_mask, scale=scale)


COMBINATIONS: dict[str, Callable[..., np.ndarray]] = {
    "original": _original,
    "calibrated": _calibrated,
    "avg": _avg,
    "cat": _cat,
    "cat-thr": _cat_thr,
    "cat-scale": _cat_scale,
}
"""Mode → (original, calibrated, tail_mask, cat_threshold, cat_scale) → scores (R, K+1), a new array."""


def _replace_tail(
    original: np.ndarray,
    calibrated: np.ndarray,
    tail_mask: np.ndarray,
    threshold: float = -np.inf,
    scale: float = 1.0,
) -> np.ndarray:
    # Importing the kernel takes a second; the command line needs the modes' names only.
    from fuse.ops.score_kernels import replace_columns

    return replace_columns(original, calibrated, tail_mask, np.float32(threshold), np.float32(scale))


def background_ratio(original: np.ndarray, calibrated: np.ndarray) -> float:
    """Returns the mean calibrated background score over the mean original one; 1 where that is undefined.

    Args:
        original, calibrated: (R, K+1) scores, background last, of one image or of many concatenated.
    """
    denominator = float(original[:, -1].sum(dtype=np.float64))
    return float(calibrated[:, -1].sum(dtype=np.float64)) / denominator if denominator > 0 else 1.0


def mask_empty_boxes(scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the scores with 0 where a box has no width or no height, so that NMS drops it.

    Args:
        scores: (R, K+1), not changed.
        boxes: (R, 4) or (R, K, 4) xyxy.
    """
    empty = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
    if not empty.any():
        return scores
    scores = scores.copy()
    scores[:, :-1][empty] = 0
    return scores


def tail_classes(instance_counts: np.ndarray, tail: float = TAIL) -> np.ndarray:
    """Returns (K,) bool: classes with fewer than `tail` training instances (the paper's T: 100, for HTC 10)."""
    return np.asarray(instance_counts) < tail


def oracle_scores(original: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the scores of an oracle that classifies every RoI correctly (props-gt, Table 4).

    They are an upper bound for the proposals. A RoI matched with ground truth of class c scores 1 - p(background) of
    the original classifier for c (at most 1, where each class has a sigmoid) and 0 for other classes. All other RoIs
    score 0.

    Args:
        original: (R, K+1) scores, background last.
        labels: (R,) int, class of the matched ground truth, K for background, -1 for ignore.

    Returns:
        (R, K+1) float32.
    """
    classes = original.shape[1] - 1
    scores = np.zeros(original.shape, np.float32)
    matched = np.flatnonzero((labels >= 0) & (labels < classes))
    # The sum of the foreground: in float32, 1 - p(background) is 0 where p(background) is near 1.
    scores[matched, labels[matched]] = np.minimum(original[matched, :classes].sum(axis=1), 1)
    return scores


def _check_arguments(original: np.ndarray, calibrated: np.ndarray, tail_mask: np.ndarray, mode: str) -> None:
    if mode not in COMBINATIONS:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(COMBINATIONS)}")
    if original.ndim != 2 or original.shape != calibrated.shape:
        raise ValueError(f"scores have shapes {original.shape} and {calibrated.shape}, expected (R, K+1) twice")
    if tail_mask.dtype != bool or tail_mask.shape != (original.shape[1] - 1,):
        raise ValueError(f"tail_mask is {tail_mask.dtype} {tail_mask.shape}, expected bool {(original.shape[1] - 1,)}")
