"""The combinations of two heads' class scores (Wang et al. 2019, Table 6)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Mode = Literal["original", "calibrated", "avg", "cat", "cat-thr", "cat-scale"]
"""How `fuse_scores` combines two heads' scores."""
RowMode = Literal[Mode, "det", "props-gt"]
"""How a row of a table comes about; see `fuse.inference.Row`."""
MODES, ROW_MODES = get_args(Mode), get_args(RowMode)
HEADLESS = ("original", "props-gt")
"""The modes that need no calibrated head."""


def fuse_scores(
    original: np.ndarray,
    calibrated: np.ndarray,
    tail: np.ndarray,
    mode: Mode = "cat",
    *,
    threshold: float = 0.05,
    scale: float | None = None,
) -> np.ndarray:
    """Class scores of an original and a calibrated head, combined; rows are not normalised again.

    | mode | foreground | Table 6 |
    |---|---|---|
    | `original` | the original's | mrcnn-r50 |
    | `new` | the calibrated head's, background as well | rhead-only |
    | `avg` | the mean of both, for every class | rhead-avg |
    | `cat` | the calibrated head's for tail classes, the original's for the others | rhead-cat |
    | `cat-thr` | as `cat`, calibrated scores below `threshold` set to 0 | rhead-cat-thr |
    | `cat-scale` | as `cat`, calibrated scores times `scale` | rhead-cat-scale |

    In every mode but `new` the background column is the original's. The paper leaves open how `cat-scale`
    divides and over what it averages. Here the ratio is mean calibrated background over mean original
    background, so that a head that believes less in background, as one trained on balanced RoIs does, is
    scaled down; `scale=None` takes it over the given RoIs, that is per image. For one ratio over a data set
    give `scale`, see `background_ratio`.

    Args:
        original, calibrated: (R, K+1) scores, background last.
        tail: (K,) bool, the classes that the calibrated head speaks for.
        mode: one of `MODES`.
        threshold: of `cat-thr`.
        scale: of `cat-scale`.

    Returns:
        (R, K+1) float32, a new array.

    Raises:
        ValueError: an unknown mode or shapes that differ.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    original, calibrated = (np.ascontiguousarray(scores, np.float32) for scores in (original, calibrated))
    tail = np.asarray(tail)
    if original.ndim != 2 or original.shape != calibrated.shape:
        raise ValueError(f"scores have shapes {original.shape} and {calibrated.shape}, expected (R, K+1) twice")
    if tail.dtype != bool or tail.shape != (original.shape[1] - 1,):
        raise ValueError(f"tail is {tail.dtype} {tail.shape}, expected bool {(original.shape[1] - 1,)}")
    if mode in ("original", "calibrated"):
        return (original if mode == "original" else calibrated).copy()
    if mode == "avg":
        fused = original + calibrated
        fused /= 2
        fused[:, -1] = original[:, -1]
        return fused
    from fuse.ops.score_kernels import (
        replace_columns,  # takes a second to import; a command line needs the modes' names alone
    )

    threshold = threshold if mode == "cat-thr" else -np.inf
    if mode != "cat-scale":
        scale = 1.0
    elif scale is None:
        scale = background_ratio(original, calibrated)
    return replace_columns(original, calibrated, tail, np.float32(threshold), np.float32(scale))


def background_ratio(original: np.ndarray, calibrated: np.ndarray) -> float:
    """Mean calibrated background score over mean original background score, 1 where that is undefined.

    Args:
        original, calibrated: (R, K+1) scores, background last, of one image or of many concatenated.
    """
    below = float(original[:, -1].sum(dtype=np.float64))
    return float(calibrated[:, -1].sum(dtype=np.float64)) / below if below > 0 else 1.0


def without_empty(scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Scores that are 0 wherever a box has no width or no height, so that it is no candidate of any suppression.

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


def tail_classes(instance_count: np.ndarray, bound: float = 100) -> np.ndarray:
    """(K,) bool: the classes with fewer than `bound` training instances (T of the paper: 100, for HTC 10)."""
    return np.asarray(instance_count) < bound


def oracle_scores(original: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores of an oracle that knows each RoI's class (props-gt, Table 4): what the proposals alone allow.

    A RoI matched with ground truth of class c gets its foreground probability 1 - p(background) of the
    original head (at most 1, where classes are scored each by itself) as the score of c, and 0 elsewhere; all
    other RoIs score 0.

    Args:
        original: (R, K+1) scores, background last.
        labels: (R,) int, class of the matched ground truth, K for background, -1 for unknown.

    Returns:
        (R, K+1) float32.
    """
    classes = original.shape[1] - 1
    scores = np.zeros(original.shape, np.float32)
    matched = np.flatnonzero((labels >= 0) & (labels < classes))
    # the sum of the foreground, since 1 - p(background) is 0 in float32 where the background is near certain
    scores[matched, labels[matched]] = np.minimum(original[matched, :classes].sum(axis=1), 1)
    return scores
