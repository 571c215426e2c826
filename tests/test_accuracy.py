"""The accuracy of a detector's own classifier, which tells whether its classes are in the order of the class table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from extract import RoIs, write_cache
from extract.__main__ import COMMANDS
from extract.accuracy import Accuracy, describe_accuracy, own_accuracy
from extract.utils.cli import run
from tests.toy_cache import CLASSES, toy_cache, toy_classes


def with_logits(rois: RoIs, shift: int, *, gt: bool = True) -> RoIs:
    """RoIs whose logits are highest for the class `shift` after the label."""
    logits = np.zeros((len(rois), 1, CLASSES + 1), np.float32)
    logits[..., -1] = 9  # background is no answer
    labels = np.minimum(rois.labels, CLASSES - 1)
    np.put_along_axis(logits, (labels[..., None] + shift) % CLASSES, 1, 2)
    return replace(rois, logits=logits, is_gt=rois.is_gt if gt else np.zeros_like(rois.is_gt))


@pytest.mark.long
@pytest.mark.parametrize("gt", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_accuracy_is_that_of_ground_truth_boxes_or_matches(tmp_path, shift, gt):
    toy = toy_cache(tmp_path / "toy.zarr", images=4)
    rois = [with_logits(one, shift, gt=gt) for one in toy]
    split = "train" if gt else "val"
    cache = write_cache(tmp_path / "cache.zarr", rois, toy_classes(), split=split, level="pooled")
    total = 12 if gt else sum((one.labels < CLASSES).sum() for one in rois)
    boxes = "ground-truth boxes" if gt else "RoIs that match a ground-truth box"
    assert own_accuracy(cache) == Accuracy(total * (shift == 0), total, boxes)
    text = describe_accuracy(cache)
    assert f"is right on {100.0 * (shift == 0):.1f}% of {total} {boxes}" in text
    assert ("its classes are likely to be in another order" in text) == (shift == 1)


def test_verify_prints_it(tmp_path, capsys):
    toy_cache(tmp_path / "toy.zarr", images=3)
    assert run("python -m extract", COMMANDS, ["verify", str(tmp_path / "toy.zarr")]) == 0
    assert "the detector's own classifier is right on" in capsys.readouterr().out


@pytest.mark.long
def test_a_cache_without_objects(tmp_path):
    toy = toy_cache(tmp_path / "toy.zarr", images=1)
    rois = [replace(one, labels=np.full_like(one.labels, CLASSES)) for one in toy]
    cache = write_cache(tmp_path / "cache.zarr", rois, toy_classes(), split="val", level="pooled")
    assert describe_accuracy(cache) == "the detector's own classifier: no ground-truth boxes to classify"
