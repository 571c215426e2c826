"""What objects show of themselves, in a terminal and in a notebook."""

from __future__ import annotations

import html

import numpy as np
import pytest

import calib
import fuse
from calib.head_types import build_head
from extract.detectors.base import ImageDetections
from extract.utils.summarized import Summarized
from fuse.drawing import MaskedDetections
from fuse.selection.learned import LearnedFusion
from tests.fuse_fixtures import annotations, tiny_cache, tiny_head
from tests.toy_cache import toy_cache


class Hostile(Summarized):
    def summary(self):
        return [("Kind", "<script>"), ("other name", "b")]


def test_a_summary_is_aligned_text_and_escaped_html():
    assert repr(Hostile()) == "Kind        <script>\nother name  b"
    assert "<th>Kind</th><td>&lt;script&gt;</td>" in Hostile()._repr_html_()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny_cache(tmp_path_factory.mktemp("reprs") / "val.zarr", annotations(), stages=2)


@pytest.fixture(scope="module")
def head(cache, tmp_path_factory):
    return calib.load_head(tiny_head(tmp_path_factory.mktemp("head") / "head", cache))


def check(shown: Summarized, *phrases: str) -> None:
    for phrase in phrases:
        assert phrase in repr(shown), repr(shown)
        assert html.escape(phrase) in shown._repr_html_()


@pytest.mark.long
def test_heads(head, tmp_path):
    check(head, "linear, 108 parameters", "5, of 3 to 4,000 training instances", "embedding 8", "8 → 6 (linear)")
    check(head, "softmax, scores averaged over 2 stages")
    cache = toy_cache(tmp_path / "train.zarr", level="hidden", projection=4, images=3)
    lowrank = build_head(cache, "3fc_lowrank", 8, 0, {"steps": 3000, "seed": 7})
    check(lowrank, "the detector's first layer is corrected along 4 directions", "3,000 steps, seed 7")
    check(build_head(cache, "linear", 8, 0, {}), "the first 1 are the detector's")


def test_scorers_and_fusions(cache, head):
    method = calib.posthoc.NorCal(gamma=0.6)
    check(method, "norcal-0.6", "softmax(z_c − γ·log N_c, z_bg)", "class counts", "not fitted: call fit(cache)")
    check(method.fit(cache), "for 5 classes and 2 stage(s)")
    learned = LearnedFusion((method, head), np.float32([[1, 2]] * 4), (1, 2))
    check(learned, "of 2 classifiers, 2 classes", "weights 1.00 to 2.00", "objectness")
    fusion = fuse.Fusion.for_cache(cache, fuse.FusionConfig(mode="cat", tail=100), head)
    check(fusion, "mode cat", "linear, embedding features", "3 of 5 classes, those of fewer than 100 training")
    check(fusion, "300 detections per image, scores above 0", "at IoU 0.5")
    original = fuse.Fusion.for_cache(cache, fuse.FusionConfig(mode="original", max_detections=-1))
    check(original, "none", "all detections per image")


def test_detections_of_an_image():
    boxes, labels = np.zeros((3, 4), np.float32), np.array([1, 1, 0])
    found = ImageDetections(boxes, labels, np.float32([0.9, 0.5, 0.25]))
    assert repr(found) == "ImageDetections(3 of 2 classes, scores 0.900 to 0.250)"
    assert repr(found._replace(boxes=boxes[:0], labels=labels[:0], scores=boxes[:0, 0])).startswith(
        "ImageDetections(0 of 0"
    )
    assert (
        repr(MaskedDetections(found, np.zeros((3, 40, 60), bool)))
        == f"MaskedDetections({found}, masks of 40 x 60 pixels)"
    )
    assert repr(MaskedDetections(found)).endswith(", no masks)")


def test_sampler(tmp_path):
    cache = toy_cache(tmp_path / "train.zarr", images=4)
    check(calib.BiLevelSampler(cache, rois_per_class=4), "class-balanced, seed 0", "16 classes, 1 image(s) of each")
    check(calib.BiLevelSampler(cache), "all of an image and class, as much background")
