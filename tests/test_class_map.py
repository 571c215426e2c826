"""`ClassMap`: what the order of a detector's outputs means for its logits, boxes, weights and labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from extract.class_scores import stage_scores
from extract.data.class_map import MIN_LOGIT, ClassMap

MAP = ClassMap(outputs=(3, -1, 0, 4), num_outputs=6)
"""Of 6 outputs 3 are classes; 1, 2 and 5 are none; class 1 has no output."""
KNOWN = [0, 2, 3]


def make_logits(stages: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (50, stages, 7)).astype(np.float32)


@pytest.mark.parametrize("average", ["scores", "logits"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("stages", [1, 3])
def test_scores_of_classes_are_those_of_their_outputs(stages, activation, average):
    logits = make_logits(stages)
    own = stage_scores(logits, average, activation)
    mapped = MAP.map_logits(logits, activation, average)
    assert mapped.shape == (50, stages, 5) and mapped.dtype == np.float32
    scores = stage_scores(mapped, average, activation)
    np.testing.assert_allclose(scores[:, KNOWN], own[:, [3, 0, 4]], rtol=1e-5, atol=1e-7)
    assert not scores[:, 1].any()
    if activation == "softmax":
        np.testing.assert_allclose(scores[:, -1], own[:, [1, 2, 5, 6]].sum(1), rtol=1e-5)
    in_cache = stage_scores(mapped.astype(np.float16), average, activation)
    assert not in_cache[:, 1].any(), "half floats represent the logit of a score of 0"


def test_a_permutation_changes_nothing_else():
    permutation = ClassMap((2, 0, 1), 3)
    logits = make_logits()[..., :4]
    mapped = permutation.map_logits(logits, "softmax", "logits")
    np.testing.assert_array_equal(mapped, logits[..., [2, 0, 1, 3]])
    assert not len(permutation.missing) and not len(permutation.surplus) and not permutation.is_identity
    assert ClassMap((0, 1, 2), 3).is_identity and not ClassMap((0, 1, 2), 4).is_identity


def test_boxes_are_permuted_if_they_are_class_specific():
    rng = np.random.default_rng(1)
    boxes, proposals = rng.random((5, 6, 4), np.float32), rng.random((5, 4), np.float32)
    mapped = MAP.map_boxes(boxes, proposals)
    np.testing.assert_array_equal(mapped[:, KNOWN], boxes[:, [3, 0, 4]])
    np.testing.assert_array_equal(mapped[:, 1], proposals)
    assert MAP.map_boxes(proposals, proposals) is proposals


def test_rows_of_a_classifier_go_both_ways():
    rng = np.random.default_rng(2)
    own = rng.normal(size=(7, 8)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    weight, bias = MAP.map_rows(*own)
    features = rng.normal(size=(20, 8)).astype(np.float32)
    logits, mapped = features @ own[0].T + own[1], features @ weight.T + bias
    np.testing.assert_allclose(mapped[:, [0, 2, 3, 4]], logits[:, [3, 0, 4, 6]], rtol=1e-5)
    assert (mapped[:, 1] == MIN_LOGIT).all()
    for back, array in zip(MAP.unmap_rows(weight, bias, own, "softmax"), own, strict=True):
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(("activation", "change"), [("softmax", 1.0), ("sigmoid", 0.0)])
def test_outputs_that_are_no_class_are_silent_beside_a_background_that_holds_them(activation, change):
    rng = np.random.default_rng(3)
    own = rng.normal(size=(7, 8)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    weight, bias = MAP.map_rows(*own)
    bias[-1] += change
    back = MAP.unmap_rows(weight, bias, own, activation)
    assert not back[0][MAP.surplus].any() and (back[1][MAP.surplus] == MIN_LOGIT).all()
    np.testing.assert_array_equal(back[1][[3, 0, 4, 6]], bias[[0, 2, 3, 4]])


def test_labels_go_both_ways():
    labels = np.array([3, 0, 2, 2])
    outputs = MAP.to_outputs(labels)
    assert outputs.tolist() == [4, 3, 0, 0] and MAP.to_classes(outputs).tolist() == labels.tolist()
    assert MAP.to_classes(np.array([5, 1])).tolist() == [-1, -1]
    assert MAP.output_values("abcd", "uvwxyz") == ["c", "v", "w", "a", "d", "z"]
    with pytest.raises(ValueError, match="class 1 has no output of the detector"):
        MAP.to_outputs(np.array([0, 1]))
    assert MAP.to_outputs(np.empty(0, np.int64)).shape == (0,)


def test_descriptions_are_json():
    description = json.loads(json.dumps({"name": "d", **MAP.to_description()}))
    assert ClassMap.from_description(description) == MAP
    assert ClassMap.from_description({"name": "d"}) is None
    assert str(MAP) == "6 (3 moved, 3 no category, 1 categories without output)"
    for outputs in ((0, 0), (2, 1), (-2, 0)):
        with pytest.raises(ValueError, match="class_outputs has .*, expected each of 0…1 at most once"):
            ClassMap(outputs, 2)
