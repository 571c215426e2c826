"""The kernels of `fuse.ops.nms`: candidates picked from the scores, sorted, and suppressed class by class.

While no score is negative, the bits of float32 have the order of the numbers: so scores are uint32 here. Letters in
shapes: `R` RoIs, `K` classes, `N` candidates.
"""

from __future__ import annotations

import numba
import numpy as np

_STRETCH = 64  # classes per maximum: long enough for vector instructions, short enough to skip most of the scores
_DIGIT = 11  # bits sorted by at once
_BLOCK = 16  # boxes compared at once
_MANY = 16  # candidates of each box that the classes share, from which on all its overlaps are found beforehand


@numba.njit(nogil=True)
def block_maxima(bits: np.ndarray) -> tuple[np.ndarray, np.uint32]:
    """The maximum of each stretch of classes without background, (R, ceil(K / _STRETCH)) uint32, and that of all.

    `bits` (R, K+1) uint32; the maximum of all is with background.
    """
    rois, classes = bits.shape[0], bits.shape[1] - 1
    maxima = np.empty((rois, (classes + _STRETCH - 1) // _STRETCH), np.uint32)
    largest = np.uint32(0)
    for r in range(rois):
        row = bits[r, :classes]
        largest = max(largest, bits[r, classes])
        for s in range(maxima.shape[1]):
            stretch = row[s * _STRETCH : (s + 1) * _STRETCH]
            maximum = np.uint32(0)
            for i in range(stretch.size):  # an index loop becomes vector instructions, iterating over values does not
                maximum = max(maximum, stretch[i])
            maxima[r, s] = maximum
            largest = max(largest, maximum)
    return maxima, largest


@numba.njit(nogil=True)
def candidates(
    scores: np.ndarray, maxima: np.ndarray, floors: np.ndarray, cut: np.uint32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RoI, class and score of the scores from `cut` on that exceed their class's floor, row by row, (N,) each.

    `scores` (R, K+1), `floors` (K,) and `cut` uint32, `maxima` of `block_maxima`; RoI and class int32, score uint32.
    """
    rois, classes = scores.shape[0], scores.shape[1] - 1
    size = (maxima >= cut).sum() * _STRETCH  # room for every score of these stretches: what stays empty costs nothing
    roi, label, score, n = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint32), 0
    for r in range(rois):
        row = scores[r, :classes]
        for s in range(maxima.shape[1]):
            if maxima[r, s] >= cut:
                stretch = row[s * _STRETCH : (s + 1) * _STRETCH]
                for i in range(stretch.size):
                    if stretch[i] >= cut and stretch[i] > floors[s * _STRETCH + i]:
                        roi[n], label[n], score[n] = r, s * _STRETCH + i, stretch[i]
                        n += 1
    return roi[:n], label[:n], score[:n]


@numba.njit(nogil=True)
def argsort_descending(scores: np.ndarray) -> np.ndarray:
    """(N,) int32 positions of falling scores (N,) uint32, the earlier of equals first; by radix."""
    order, other = np.arange(scores.size).astype(np.int32), np.empty(scores.size, np.int32)
    mask = np.uint32((1 << _DIGIT) - 1)
    for shift in range(0, 32, _DIGIT):
        starts = np.zeros((1 << _DIGIT) + 1, np.int64)
        for i in range(scores.size):
            starts[np.int64(mask - (scores[i] >> np.uint32(shift) & mask)) + 1] += 1
        starts = np.cumsum(starts)
        for i in order:
            digit = np.int64(mask - (scores[i] >> np.uint32(shift) & mask))
            other[starts[digit]] = i
            starts[digit] += 1
        order, other = other, order
    return order


@numba.njit(nogil=True)
def nms_by_class(
    roi: np.ndarray,
    label: np.ndarray,
    score: np.ndarray,
    boxes: np.ndarray,
    classes: int,
    iou_threshold: np.float32,
    limit: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best `limit` candidates whose IoU with each better one of their class that is kept is within the threshold.

    Args:
        roi, label, score: candidates as `candidates` returns them, each class's by ascending RoI.
        boxes: (R, 1, 4) or (R, K, 4) float32 xyxy.
        classes: K.
        iou_threshold, limit: of suppression, and of all classes together.

    Returns:
        roi_index (D,) int64, class_index (D,) int64, score (D,) uint32, best first; equals by class and then by RoI.
    """
    sizes = np.zeros(classes, np.int64)
    for c in label:
        sizes[c] += 1
    ends = np.cumsum(sizes)
    places = ends - sizes
    by_class, box = np.empty(roi.size, np.int32), np.empty((roi.size, 4), np.float32)
    for n in range(roi.size):  # as they lie in memory: a box here and there of many megabytes takes longer
        c = label[n]
        source = boxes[roi[n], c if boxes.shape[1] > 1 else 0]
        by_class[places[c]] = n
        for i in range(4):
            box[places[c], i] = source[i]
        places[c] += 1
    order = argsort_descending(score[by_class])
    places, queue = ends - sizes, np.empty(roi.size, np.int32)
    for p in order:
        c = label[by_class[p]]
        queue[places[c]] = p
        places[c] += 1
    if boxes.shape[1] == 1 and roi.size > _MANY * len(boxes):
        kept = _bitmask_nms(queue, ends, roi[by_class], boxes[:, 0], iou_threshold)
    else:
        kept = _greedy_nms(queue, ends, box, iou_threshold)
    count = min(limit, kept.sum())
    roi_index, class_index = np.empty(count, np.int64), np.empty(count, np.int64)
    values, found = np.empty(count, np.uint32), 0
    for p in order:
        if found == count:
            break
        if kept[p]:
            n = by_class[p]
            roi_index[found], class_index[found], values[found] = roi[n], label[n], score[n]
            found += 1
    return roi_index, class_index, values


@numba.njit(nogil=True)
def _greedy_nms(queue, ends, boxes, iou_threshold):
    """(N,) bool: which `boxes` (N, 4) are kept; `queue[ends[c - 1] : ends[c]]` are those of class c, best first."""
    kept, start, largest = np.zeros(queue.size, np.bool_), 0, 0
    for end in ends:
        start, largest = end, max(largest, end - start)
    # The kept boxes of one class, in arrays of their own: only of such are vector instructions made.
    room = largest + _BLOCK
    left, top, right = np.zeros(room, np.float32), np.zeros(room, np.float32), np.zeros(room, np.float32)
    bottom, areas = np.zeros(room, np.float32), np.zeros(room, np.float32)
    start = 0
    for end in ends:
        count = 0
        for p in queue[start:end]:
            x1, y1, x2, y2 = boxes[p, 0], boxes[p, 1], boxes[p, 2], boxes[p, 3]
            area = (x2 - x1) * (y2 - y1)
            if not _overlaps(left, top, right, bottom, areas, count, x1, y1, x2, y2, area, iou_threshold):
                left[count], top[count], right[count], bottom[count], areas[count] = x1, y1, x2, y2, area
                count += 1
                kept[p] = True
        for array in (left, top, right, bottom, areas):
            array[:count] = 0
        start = end
    return kept


@numba.njit(nogil=True)
def _bitmask_nms(queue, ends, roi, boxes, iou_threshold):
    """`_greedy_nms` where the classes share their `boxes` (R, 4), candidate p being of box `roi[p]`.

    What each box suppresses is noted beforehand, one bit for every other.
    """
    rois, words = len(boxes), (len(boxes) + 63) // 64
    left, top, right = (
        np.zeros(words * 64, np.float32),
        np.zeros(words * 64, np.float32),
        np.zeros(words * 64, np.float32),
    )
    bottom, areas = np.zeros(words * 64, np.float32), np.zeros(words * 64, np.float32)
    left[:rois], top[:rois], right[:rois], bottom[:rois] = boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]
    areas[:rois] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    suppressed_by = np.empty((rois, words), np.uint64)
    for r in range(rois):
        _overlap_bits(left, top, right, bottom, areas, r, iou_threshold, suppressed_by[r])
    kept, start, suppressed = np.zeros(queue.size, np.bool_), 0, np.empty(words, np.uint64)
    for end in ends:
        suppressed[:] = 0
        for p in queue[start:end]:
            if not suppressed[roi[p] >> 6] >> np.uint64(roi[p] & 63) & np.uint64(1):
                kept[p] = True
                more = suppressed_by[roi[p]]
                for w in range(words):
                    suppressed[w] |= more[w]
        start = end
    return kept


@numba.njit(nogil=True, error_model="numpy")
def _overlap_bits(left, top, right, bottom, areas, r, iou_threshold, bits):
    """Fills `bits` (W,) uint64 with whether the IoU of box r with each of W * 64 exceeds the threshold."""
    zero, hits = np.float32(0), np.empty(left.size, np.uint8)
    x1, y1, x2, y2, area = left[r], top[r], right[r], bottom[r], areas[r]
    for i in range(left.size):
        width = max(zero, min(x2, right[i]) - max(x1, left[i]))
        height = max(zero, min(y2, bottom[i]) - max(y1, top[i]))
        inter = width * height
        hits[i] = inter / (areas[i] + area - inter) > iou_threshold
    for w in range(bits.size):
        of_word, word = hits[w * 64 : (w + 1) * 64], np.uint64(0)
        for i in range(64):
            word |= np.uint64(of_word[i]) << np.uint64(i)
        bits[w] = word


@numba.njit(nogil=True, error_model="numpy")
def _overlaps(left, top, right, bottom, areas, count, x1, y1, x2, y2, area, iou_threshold):
    """Whether the IoU of a box with one of the first `count` of others exceeds the threshold.

    float32 in the order of operations of torchvision's CPU kernel. Whole blocks are compared, without a remainder:
    what lies behind the others are boxes of 0, which overlap nothing.
    """
    zero, hits = np.float32(0), 0
    for i in range((count + _BLOCK - 1) // _BLOCK * _BLOCK):
        width = max(zero, min(x2, right[i]) - max(x1, left[i]))
        height = max(zero, min(y2, bottom[i]) - max(y1, top[i]))
        inter = width * height
        hits += inter / (areas[i] + area - inter) > iou_threshold
    return hits > 0
