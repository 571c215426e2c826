from __future__ import annotations

import itertools

import hotcoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.ops import nms
from fuse.ops.nms import batched_nms, class_nms
from fuse.ops.nms_kernels import nms_by_class
from tests.equivalents import EQUIVALENTS

REFERENCE = EQUIVALENTS["class_nms"]
REFERENCES = pytest.mark.parametrize("reference", ["numpy", pytest.param("torch", marks=pytest.mark.framework)])


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def detector_like(rois=1000, classes=1230, objects=20, seed=0, specific=False):
    """Boxes clustered around objects; peaked softmax scores, heavy background, long tail of classes."""
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(50, 750, (objects, 2)), rng.uniform(20, 300, (objects, 2))
    owner = rng.integers(0, objects, rois)
    c = centre[owner] + rng.normal(0, 0.08, (rois, 2)) * size[owner]
    s = size[owner] * np.exp(rng.normal(0, 0.15, (rois, 2)))
    boxes = np.concatenate([c - s / 2, c + s / 2], axis=1).clip(0, 800)
    logits = rng.normal(0, 1.5, (rois, classes + 1)) - 0.7 * np.log1p(rng.permutation(classes + 1))
    logits[np.arange(rois), rng.integers(0, classes, objects)[owner]] += rng.normal(6, 2, rois)
    logits[:, -1] += rng.normal(8, 3, rois)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    if specific:
        boxes = boxes[:, None] + rng.normal(0, 5, (rois, classes, 4))
        boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2])
    return boxes.astype(np.float32), scores.astype(np.float32)


def quantised(scores, steps):
    return (np.floor(scores * steps) / np.float32(steps)).astype(np.float32)


@pytest.mark.framework
@pytest.mark.parametrize(
    ("steps", "objects", "specific", "threshold"),
    [
        (None, 20, False, 0.0),
        (200, 5, False, 0.0),
        (1000, 100, True, 0.0),
        (None, 20, False, 1e-4),
        (50, 20, False, 0.05),
    ],
)
def test_equals_torchvision_class_by_class_at_lvis_size(steps, objects, specific, threshold):
    boxes, scores = detector_like(objects=objects, specific=specific)
    scores = scores if steps is None else quantised(scores, steps)
    threshold = float(np.float32(threshold))
    found = class_nms(boxes, scores, 0.5, threshold, 300)
    assert len(found[0]) == 300 or threshold > 0
    assert_same(found, REFERENCE["torch"](boxes, scores, 0.5, threshold, 300))


@pytest.mark.framework
def test_equals_torchvision_when_all_scores_are_equal():
    boxes, scores = detector_like(rois=200)
    scores[:] = 1 / 1231
    assert_same(class_nms(boxes, scores), REFERENCE["torch"](boxes, scores))


@pytest.mark.framework
@pytest.mark.parametrize("specific", [False, True])
@pytest.mark.parametrize(("rois", "classes", "threshold"), [(300, 100, 0.0), (1000, 1230, 1e-4)])
def test_equals_torchvision_without_cap(rois, classes, threshold, specific):
    boxes, scores = detector_like(rois, classes, specific=specific)
    arguments = boxes, scores, 0.5, float(np.float32(threshold)), None
    assert_same(class_nms(*arguments), REFERENCE["torch"](*arguments))


@REFERENCES
@pytest.mark.parametrize("iou", [0.1, 0.7, 1 / 3, float(np.float32(0.7)), float(np.float32(1 / 3))])
def test_thresholds_that_float32_does_not_have_decide_as_they_are(iou, reference):
    """Boxes whose IoU with the first is within a few roundings of the threshold."""
    near, lengths = np.float32(iou).view(np.int32) + np.arange(-8, 9, dtype=np.int32), set()
    for height in near.view(np.float32):
        boxes = np.array([[0, 0, 1, 1], [0, 0, 1, height]], np.float32)
        scores = np.array([[0.9, 0], [0.8, 0]], np.float32)
        found = class_nms(boxes, scores, iou)
        lengths.add(len(found[0]))
        assert_same(found, REFERENCE[reference](boxes, scores, iou))
    assert lengths == {1, 2}


@pytest.mark.parametrize("kept", [15, 16, 17, 33])
def test_a_box_is_compared_with_all_that_are_kept(kept):
    corner = np.arange(kept)[:, None] * [10, 0]
    apart = np.concatenate([corner, corner + 8], 1)
    boxes = np.concatenate([apart, apart]).astype(np.float32)
    scores = np.linspace(0.9, 0.1, 2 * kept, dtype=np.float32)[:, None].repeat(2, 1)
    assert class_nms(boxes, scores)[0].tolist() == list(range(kept))
    assert class_nms(boxes[:, None], scores)[0].tolist() == list(range(kept))


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 500]), st.sampled_from([0, 1, 2**20, 2**32 - 1]))
def test_the_order_of_scores_equals_both_references(seed, count, largest):
    scores = np.random.default_rng(seed).integers(0, largest, count, np.uint32, endpoint=True)
    found = [(order(scores),) for order in EQUIVALENTS["argsort_descending"].values()]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@st.composite
def inputs(draw):
    """Boxes on a coarse grid, for IoUs on the threshold, and scores in few steps, for ties."""
    rois, classes = draw(st.integers(0, 24)), draw(st.sampled_from([1, 2, 3, 65, 130]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (rois, 2) if draw(st.booleans()) else (rois, classes, 2)
    corner = rng.integers(0, 6, shape)
    boxes = np.concatenate([corner, corner + rng.integers(0, 4, shape)], axis=-1).astype(np.float32)
    scores = rng.integers(-1, draw(st.sampled_from([2, 5, 100])), (rois, classes + 1)) / np.float32(100)
    return boxes, scores.astype(np.float32)


@pytest.mark.long
@REFERENCES
@settings(max_examples=150, deadline=None)
@given(
    inputs(),
    st.sampled_from([0.0, 1 / 3, 0.5, 0.7, 1.0]),
    st.sampled_from([0.0, 0.01, 0.03]),
    st.sampled_from([None, -1, 0, 1, 7, 300]),
    st.sampled_from([1, 3, 2048]),
)
def test_equals_the_references_on_the_decision_boundary(reference, arrays, iou, threshold, limit, first):
    boxes, scores = arrays
    threshold = float(np.float32(threshold))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "FIRST_BLOCKS", first)
        found = class_nms(boxes, scores, iou, threshold, limit)
    assert_same(found, REFERENCE[reference](boxes, scores, iou, threshold, limit))


@pytest.mark.long
def test_a_cap_gives_the_beginning_of_the_uncapped_result():
    boxes, scores = detector_like(rois=200, classes=300)
    everything = class_nms(boxes, quantised(scores, 500), max_detections=None)
    for limit in (1, 10, 299, 1000):
        capped = class_nms(boxes, quantised(scores, 500), max_detections=limit)
        assert_same(capped, [part[:limit] for part in everything])


@REFERENCES
def test_thresholds_by_class(reference):
    boxes, scores = detector_like(rois=100, classes=70)
    arguments = boxes, scores, 0.5, np.linspace(0, 0.1, 70).astype(np.float32), 300
    assert_same(class_nms(*arguments), REFERENCE[reference](*arguments))


def test_the_example_of_nms_by_class():
    """The six candidates of its docstring, with boxes shared by the classes and with equal class-specific boxes."""
    roi_index, class_index = np.array([0, 0, 1, 1, 2, 2], np.int32), np.array([0, 1, 0, 1, 0, 1], np.int32)
    score = np.array([0.6, 0.9, 0.8, 0.7, 0.4, 0.5], np.float32).view(np.uint32)
    boxes = np.array([[0, 0, 8, 8], [0, 0, 8, 7], [20, 0, 28, 8]], np.float32)[:, None]
    kept = [1, 2, 5, 4]
    for limit, some_boxes in ((6, boxes), (3, boxes.repeat(2, axis=1))):
        found = nms_by_class(roi_index, class_index, score, some_boxes, 2, np.float32(0.5), limit)
        expected = roi_index[kept].astype(np.int64), class_index[kept].astype(np.int64), score[kept]
        assert_same(found, [column[:limit] for column in expected])


@REFERENCES
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1 / 3, 0.5, 1.0]), st.sampled_from([None, -1, 0, 1, 12]))
def test_batched_nms_equals_the_references_on_the_decision_boundary(reference, seed, iou, limit):
    rng = np.random.default_rng(seed)
    count, corner = rng.integers(0, 80), rng.integers(0, 6, (80, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 4, (80, 2))], axis=1).astype(np.float32)[:count]
    labels, scores = rng.integers(0, 3, count), (rng.integers(0, 9, count) / np.float32(8)).astype(np.float32)
    found = batched_nms(boxes, labels, scores, 3, iou, limit)
    expected = EQUIVALENTS["batched_nms"][reference](boxes, labels, scores, 3, iou, limit)
    assert_same([found], [expected])


def test_threshold_is_strict_and_zero_area_boxes_remove_nothing():
    boxes = np.array([[1, 1, 1, 5], [1, 1, 1, 5]], np.float32)
    scores = np.array([[0.5, 0.05, 0.0], [0.05, 0.0, 0.0]], np.float32)
    roi, cls, score = class_nms(boxes, scores, score_threshold=np.float32(0.05))
    assert (roi.tolist(), cls.tolist(), score.tolist()) == ([0], [0], [0.5])
    assert len(class_nms(boxes, scores)[0]) == 3


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.3, 0.7])
def test_a_score_is_compared_with_the_threshold_in_float32(threshold):
    """As NumPy 2 and torch do; numba alone compares with the float64, which may be below or above the float32."""
    at, above = np.float32(threshold), np.nextafter(np.float32(threshold), np.float32(1))
    boxes = np.array([[0, 0, 9, 9], [20, 20, 29, 29]], np.float32)
    found = class_nms(boxes, np.array([[at, 0], [above, 0]], np.float32), score_threshold=threshold)
    assert found[2].tolist() == [float(above)]


def test_overflowing_and_infinite_values_are_handled_as_numbers():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    scores = np.array([[np.inf, 1e-45, 0], [3e38, -0.0, 0]], np.float32)
    assert_same(class_nms(boxes, scores), REFERENCE["numpy"](boxes, scores))


@pytest.mark.parametrize("place", [(3, 5), (0, 99), (9, 100)])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_scores_are_refused(place, sign):
    boxes, scores = detector_like(rois=10, classes=100)
    scores[place] = np.copysign(np.nan, sign)
    with pytest.raises(ValueError, match=r"^scores contain NaN$"):
        class_nms(boxes, scores)


@pytest.mark.parametrize("specific", [False, True])
def test_nan_boxes_are_refused(specific):
    boxes, scores = detector_like(rois=10, classes=100, specific=specific)
    boxes[(7, 50, 2) if specific else (7, 2)] = np.nan
    with pytest.raises(ValueError, match=r"^boxes contain NaN$"):
        class_nms(boxes, scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((3, 5))}, "boxes have shape"),
        ({"boxes": np.zeros((3, 3, 4))}, r"expected \(3, 4\) or \(3, 4, 4\)"),
        ({"scores": np.zeros(3)}, "scores have shape"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5"),
        ({"iou_threshold": np.nan}, "iou_threshold is nan"),
        ({"score_threshold": -0.1}, "score_threshold is -0.1"),
        ({"max_detections": -2}, "max_detections is -2"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    arguments = {"boxes": np.zeros((3, 4)), "scores": np.zeros((3, 5))} | change
    with pytest.raises(ValueError, match=message):
        class_nms(**arguments)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_masks_equal_both_references(seed, height, width):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = np.stack([(255 * (y**2 + x**2 < rng.uniform(0, 2.5))), rng.integers(0, 256, (28, 28)), y * 0 + 255])
    corners = rng.uniform(-15, 45, (3, 4)).astype(np.float32)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    arguments = masks.astype(np.uint8), boxes, height, width
    found = EQUIVALENTS["encode_masks"]["numba"](*arguments)
    assert found == EQUIVALENTS["encode_masks"]["numpy"](*arguments) == EQUIVALENTS["encode_masks"]["torch"](*arguments)


def test_masks_at_the_image_border_and_without_pixels():
    full, empty = np.full((28, 28), 255, np.uint8), np.zeros((28, 28), np.uint8)
    whole, outside, flat, far = [0, 0, 9, 7], [20, 20, 30, 30], [3, 3, 3, 5], [-1e30, -1e30, 1e30, 1e30]
    boxes = np.array([whole, outside, flat, far, whole], np.float32)
    found = EQUIVALENTS["encode_masks"]["numba"](np.stack([full, full, full, full, empty]), boxes, 7, 9)
    # "far" is stretched so much that the image lies within one cell
    assert hotcoco.mask.area(found).tolist() == [63, 0, 0, 63, 0]


def test_masks_are_checked():
    masks = np.zeros((2, 28, 28), np.uint8)
    encode = EQUIVALENTS["encode_masks"]["numba"]
    for arguments, message in [
        ((masks.astype(np.float32), np.zeros((2, 4))), "masks are float32"),
        ((masks, np.zeros((3, 4))), "boxes have shape"),
        ((masks, np.full((2, 4), np.nan)), "NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode(*arguments, 10, 10)


def test_every_function_has_its_equivalents():
    assert all({"numba", "numpy"} <= set(kinds) <= {"numba", "numpy", "torch"} for kinds in EQUIVALENTS.values())
    assert all(callable(f) for f in itertools.chain.from_iterable(kinds.values() for kinds in EQUIVALENTS.values()))
