"""The kernels from logits to detections, one image at a time, on one thread: 1,000 RoIs of LVIS v0.5's 1,230 classes.

    python -m benchmarks.speed.suppression

Suppression against the standard path (scores above the threshold, `torchvision.ops.batched_nms`, the best 300) and
against one pass over the scores; two heads' logits to detections against their softmaxes alone; and each kernel against
its equivalents in NumPy and torch, slower ones on smaller inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torchvision

from benchmarks.speed import inputs
from benchmarks.speed.measure import compare, keep, row
from calib.scoring import softmax
from fuse.ops.nms import class_nms
from fuse.scores import fuse_scores, tail_classes
from tests.equivalents import EQUIVALENTS

Found = tuple[np.ndarray, np.ndarray, np.ndarray]

SEEDS = 3
ROUNDS = 5
THRESHOLDS = (0.0, 1e-4, 0.05)
BOUNDS = {0.0: 4000, 1e-4: 50, 0.05: 1}
"""How many times faster than the standard path with 300 detections kept; without a cap at 0.0, not slower."""


def main() -> None:
    """Times all kernels."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        keep("suppression", [*standard_rows(), *pass_rows(), *chain_rows(), *equivalent_rows()])


def standard_rows() -> list[dict[str, str]]:
    """Every threshold, kind of boxes and cap against the standard path; detections equal on several seeds."""
    rows = []
    for threshold, specific, limit in itertools.product(THRESHOLDS, (False, True), (300, None)):
        for seed in range(SEEDS if threshold else 1):
            check(*image(seed, specific), threshold, limit)
        boxes, scores = image(0, specific)
        pair = compare(
            lambda arguments=(boxes, scores, 0.5, threshold, limit): class_nms(*arguments),
            lambda arguments=(boxes, scores, threshold, limit): standard(*arguments),
            rounds=ROUNDS if threshold else 1,  # there the standard path takes seconds
            repeat=20 if limit else 1,
        )
        kind = "class-specific" if specific else "shared"
        bound = BOUNDS[threshold] if limit or threshold else 1
        what = f"class_nms above {threshold:g}, {kind} boxes, {limit or 'all'} kept"
        rows.append(row(what, "the standard path", pair, at_least=bound))
    return rows


def standard(boxes: np.ndarray, scores: np.ndarray, threshold: float, limit: int | None) -> Found:
    """What the frameworks do: every candidate by itself, then `batched_nms` of all classes."""
    boxes, scores = torch.from_numpy(boxes), torch.from_numpy(scores)[:, :-1]
    roi, label = torch.nonzero(scores > threshold, as_tuple=True)
    values, boxes = scores[roi, label], boxes[roi] if boxes.ndim == 2 else boxes[roi, label]
    kept = torchvision.ops.batched_nms(boxes, values, label, 0.5)[:limit]
    return roi[kept].numpy(), label[kept].numpy(), values[kept].numpy()


def check(boxes: np.ndarray, scores: np.ndarray, threshold: float, limit: int | None) -> None:
    """Asserts that ours are the detections of `torchvision.ops.nms` class by class, to the bit, and prints in how many
    the standard path differs.

    From 1,000 candidates on `batched_nms` goes class by class as well. Of fewer it moves each class to a place of its
    own, up to a million pixels away, where float32 has sixteenths of a pixel: an IoU near the threshold may come out
    on the other side.
    """
    threshold = float(np.float32(threshold))
    ours = class_nms(boxes, scores, 0.5, threshold, limit)
    for a, b in zip(ours, EQUIVALENTS["class_nms"]["torch"](boxes, scores, 0.5, threshold, limit), strict=True):
        np.testing.assert_array_equal(a, b)
    theirs = standard(boxes, scores, threshold, limit)
    differ = set(zip(*ours, strict=True)) ^ set(zip(*theirs, strict=True))
    if (scores[:, :-1] > threshold).sum() >= 1000:
        assert not differ
    if differ:
        print(f"above {threshold:g}: batched_nms has {len(differ)} detections otherwise, of {len(ours[0])}")


def pass_rows() -> list[dict[str, str]]:
    """Against the maximum of the same array."""
    boxes, scores = image(0)

    def passes() -> None:
        for _ in range(20):
            scores.max()

    def ours() -> None:
        for _ in range(20):
            class_nms(boxes, scores)

    pair = compare(ours, passes, rounds=15)
    return [row("20 × class_nms above 0, shared boxes, 300 kept", "20 × scores.max()", pair, at_most=15)]


def chain_rows() -> list[dict[str, str]]:
    """Two blocks of float16 logits to detections, against torch's two softmaxes of the same blocks."""
    boxes, blocks = inputs.proposals(), [inputs.logits(seed=seed) for seed in range(2)]
    tail = tail_classes(inputs.lvis_classes()["instance_count"])
    tensors = [torch.from_numpy(block) for block in blocks]

    def chain() -> None:
        for _ in range(10):
            class_nms(boxes, fuse_scores(*map(softmax, blocks), tail))

    def softmaxes() -> None:
        for _ in range(10):
            for tensor in tensors:
                torch.softmax(tensor, 1, dtype=torch.float32)

    for block, tensor in zip(blocks, tensors, strict=True):
        np.testing.assert_array_equal(softmax(block), torch.softmax(tensor, 1, dtype=torch.float32))
    pair = compare(chain, softmaxes, rounds=15)
    what = "10 × two float16 blocks of logits to 300 detections"
    return [row(what, "torch.softmax(block, 1, dtype=float32) twice, 10 times", pair, at_most=2)]


def equivalent_rows() -> list[dict[str, str]]:
    """Each kernel against its equivalents; results equal."""
    boxes, scores = image(0)
    small = scores[:200, :101].copy()
    new, tail = image(1)[1], tail_classes(inputs.lvis_classes()["instance_count"])
    columns = scores, new, tail, np.float32(0.05), np.float32(0.5)
    values = scores.view(np.uint32).ravel()[:100_000]
    cases: dict[str, list[tuple[str, str, tuple]]] = {
        "class_nms": [
            ("200 RoIs, 100 classes", "numpy", (boxes[:200], small)),
            ("1,000 RoIs, 1,230 classes, class by class", "torch", (boxes, scores)),
        ],
        "replace_columns": [("1,000 RoIs, 1,230 classes", kind, columns) for kind in ("numpy", "torch")],
        "argsort_descending": [("100,000 scores", kind, (values,)) for kind in ("numpy", "torch")],
        "encode_masks": [
            ("10 masks of 64 × 64", "numpy", masks(10, (64, 64))),
            ("50 masks of 800 × 1216", "torch", masks(50, inputs.SIZE)),
        ],
    }
    rows = []
    for name, of_name in cases.items():
        for size, kind, arguments in of_name:
            ours, other = EQUIVALENTS[name]["numba"], EQUIVALENTS[name][kind]
            assert_equal(ours(*arguments), other(*arguments))
            pair = compare(*(bound(f, arguments) for f in (ours, other)), rounds=3)
            rows.append(row(f"{name}, {size}", kind, pair))
    return rows


def bound(function: Callable, arguments: tuple) -> Callable[[], object]:
    return lambda: function(*arguments)


def assert_equal(ours: object, other: object) -> None:
    """Equal records of masks, or equal arrays."""
    if isinstance(ours, list):
        assert ours == other
    else:
        np.testing.assert_equal(ours, other)


def image(seed: int, specific: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores."""
    boxes = inputs.proposals(seed=seed, classes=1230 if specific else None)
    return boxes, softmax(inputs.logits(seed=seed))


def masks(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Discs in the boxes of proposals, shrunk with the image."""
    height, width = size
    boxes = inputs.proposals(count) * np.float32(height / inputs.SIZE[0])
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    radius = np.random.default_rng(0).uniform(0.3, 1.2, (count, 1, 1))
    return (254 / (1 + np.exp(8 * (x**2 + y**2 - radius)))).astype(np.uint8), boxes, height, width


if __name__ == "__main__":
    main()
