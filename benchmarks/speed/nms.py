"""NMS and the other kernels between logits and detections: 1,000 RoIs, LVIS v0.5's 1,230 classes, one thread.

    python -m benchmarks.speed.nms

Baselines: of multi-class NMS the standard path (scores above the threshold, `torchvision.ops.batched_nms`, the best
300) and one pass over the scores; of logits to detections with two heads, the two softmaxes; of each kernel its
equivalents in NumPy and torch, slow ones on smaller inputs.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks.speed import inputs
from benchmarks.speed.measure import Result, compare, result, save
from extract.class_scores import softmax
from fuse.ops.nms import class_nms
from fuse.scores import fuse_scores, tail_classes
from tests.equivalents import EQUIVALENTS

Kept = tuple[np.ndarray, np.ndarray, np.ndarray]
"""roi_index, class_index and score, as `class_nms` returns them."""

SEEDS = 3
ROUNDS = 5
THRESHOLDS = (0.0, 1e-4, 0.05)
TARGETS = {0.0: 4000, 1e-4: 50, 0.05: 1}
"""Speed-up over the standard path by score threshold, 300 detections kept."""
UNCAPPED_TARGET = 1
"""The same at threshold 0.0 with all detections kept."""


def main() -> None:
    """Times all kernels and saves the results."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        save("nms", [*against_standard_path(), against_one_pass(), against_softmaxes(), *against_equivalents()])


def against_standard_path() -> list[Result]:
    """Times every threshold, kind of boxes and cap; detections are checked on several seeds."""
    results = []
    for threshold, specific, limit in itertools.product(THRESHOLDS, (False, True), (300, None)):
        for seed in range(SEEDS if threshold else 1):
            check_detections(*make_image(seed, specific), threshold, limit)
        boxes, scores = make_image(0, specific)
        timing = compare(
            partial(class_nms, boxes, scores, 0.5, threshold, limit),
            partial(standard_path, boxes, scores, threshold, limit),
            rounds=ROUNDS if threshold else 1,  # at 0.0 the standard path takes seconds
            repeat=20 if limit else 1,
        )
        kind = "class-specific" if specific else "shared"
        case = f"class_nms above {threshold:g}, {kind} boxes, {limit or 'all'} kept"
        target = TARGETS[threshold] if limit or threshold else UNCAPPED_TARGET
        results.append(result(case, "the standard path", timing, "at_least", target))
    return results


def standard_path(boxes: np.ndarray, scores: np.ndarray, threshold: float, limit: int | None) -> Kept:
    """Runs multi-class NMS as the frameworks do: one box per candidate, then `batched_nms` of all classes.

    Args:
        boxes: (R, 4) or (R, K, 4) float32 xyxy.
        scores: (R, K+1) float32, background last.
        threshold: candidates score above it.
        limit: detections kept, None for all.
    """
    all_boxes, all_scores = torch.from_numpy(boxes), torch.from_numpy(scores)[:, :-1]
    roi, label = torch.nonzero(all_scores > threshold, as_tuple=True)
    candidate_scores = all_scores[roi, label]
    candidate_boxes = all_boxes[roi] if all_boxes.ndim == 2 else all_boxes[roi, label]
    kept = torchvision.ops.batched_nms(candidate_boxes, candidate_scores, label, 0.5)[:limit]
    return roi[kept].numpy(), label[kept].numpy(), candidate_scores[kept].numpy()


def check_detections(boxes: np.ndarray, scores: np.ndarray, threshold: float, limit: int | None) -> None:
    """Asserts that `class_nms` equals `torchvision.ops.nms` per class bit for bit, and prints how the standard path
    differs.

    From 1,000 candidates on `batched_nms` goes class by class as well. With fewer, it shifts each class by up to a
    million pixels, where float32 resolves sixteenths of a pixel: an IoU near the threshold may fall on the other side.
    """
    threshold = float(np.float32(threshold))
    kept = class_nms(boxes, scores, 0.5, threshold, limit)
    per_class = EQUIVALENTS["class_nms"]["torch"](boxes, scores, 0.5, threshold, limit)
    for ours, theirs in zip(kept, per_class, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    differ = set(zip(*kept, strict=True)) ^ set(zip(*standard_path(boxes, scores, threshold, limit), strict=True))
    if (scores[:, :-1] > threshold).sum() >= 1000:
        assert not differ
    if differ:
        print(f"above {threshold:g}: batched_nms differs in {len(differ)} of {len(kept[0])} detections")


def against_one_pass() -> Result:
    """Times NMS against the maximum of the same scores."""
    boxes, scores = make_image(0)

    def maxima() -> None:
        for _ in range(20):
            scores.max()

    def nms() -> None:
        for _ in range(20):
            class_nms(boxes, scores)

    case = "20 × class_nms above 0, shared boxes, 300 kept"
    return result(case, "20 × scores.max()", compare(nms, maxima, rounds=15), "at_most", 15)


def against_softmaxes() -> Result:
    """Times two blocks of float16 logits to detections, against torch's softmax of each block."""
    boxes, blocks = inputs.proposals(), [inputs.logits(seed=seed) for seed in range(2)]
    tail = tail_classes(inputs.lvis_classes()["instance_count"].to_numpy())
    tensors = [torch.from_numpy(block) for block in blocks]

    def logits_to_detections() -> None:
        for _ in range(10):
            original, calibrated = map(softmax, blocks)
            class_nms(boxes, fuse_scores(original, calibrated, tail))

    def softmaxes() -> None:
        for _ in range(10):
            for tensor in tensors:
                torch.softmax(tensor, 1, dtype=torch.float32)

    for block, tensor in zip(blocks, tensors, strict=True):
        np.testing.assert_array_equal(softmax(block), torch.softmax(tensor, 1, dtype=torch.float32))
    case = "10 × two float16 blocks of logits to 300 detections"
    baseline = "torch.softmax(block, 1, dtype=float32) twice, 10 times"
    return result(case, baseline, compare(logits_to_detections, softmaxes, rounds=15), "at_most", 2)


def against_equivalents() -> list[Result]:
    """Times each kernel against its equivalents in `tests.equivalents`; results are checked to be equal."""
    results = []
    for name, size, equivalent, arguments in equivalent_cases():
        kernel, baseline = EQUIVALENTS[name]["numba"], EQUIVALENTS[name][equivalent]
        np.testing.assert_equal(kernel(*arguments), baseline(*arguments))
        timing = compare(partial(kernel, *arguments), partial(baseline, *arguments), rounds=3)
        results.append(result(f"{name}, {size}", equivalent, timing))
    return results


def equivalent_cases() -> list[tuple[str, str, str, tuple[Any, ...]]]:
    """Returns for each case the kernel, the size of its input, the equivalent, and the arguments."""
    boxes, scores = make_image(0)
    few_scores = scores[:200, :101].copy()
    tail = tail_classes(inputs.lvis_classes()["instance_count"].to_numpy())
    columns = scores, make_image(1)[1], tail, np.float32(0.05), np.float32(0.5)
    bits = scores.view(np.uint32).ravel()[:100_000]
    return [
        ("class_nms", "200 RoIs, 100 classes", "numpy", (boxes[:200], few_scores)),
        ("class_nms", "1,000 RoIs, 1,230 classes, class by class", "torch", (boxes, scores)),
        ("replace_columns", "1,000 RoIs, 1,230 classes", "numpy", columns),
        ("replace_columns", "1,000 RoIs, 1,230 classes", "torch", columns),
        ("argsort_descending", "100,000 scores", "numpy", (bits,)),
        ("argsort_descending", "100,000 scores", "torch", (bits,)),
        ("encode_masks", "10 masks of 64 × 64", "numpy", make_masks(10, (64, 64))),
        ("encode_masks", "50 masks of 800 × 1216", "torch", make_masks(50, inputs.SIZE)),
    ]


def make_image(seed: int, specific: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Makes boxes (R, 4), or (R, K, 4) if class-specific, and scores (R, K+1)."""
    boxes = inputs.proposals(seed=seed, classes=1230 if specific else None)
    return boxes, softmax(inputs.logits(seed=seed))


def make_masks(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Makes the arguments of `encode_masks`: (N, 28, 28) masks, boxes scaled down with the image, height and width."""
    boxes = inputs.proposals(count) * np.float32(size[0] / inputs.SIZE[0])
    return inputs.disc_masks(count, np.random.default_rng(0)), boxes, *size


if __name__ == "__main__":
    main()
