from __future__ import annotations

import io
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tqdm import tqdm

import fuse
from calib.head_io import load_head
from calib.scoring import Original
from extract.class_scores import softmax
from extract.detectors.base import ImageDetections
from extract.utils import prefetch
from fuse import FusionConfig, accumulator, inference
from fuse.accumulator import DetectionAccumulator
from fuse.detections import Detections, best_first, top_of_groups
from fuse.fusion import Fusion, join_by_class
from fuse.inference import detect_many
from fuse.ops.masks import encode_masks
from fuse.ops.nms import NMSResult, class_nms
from fuse.scores import FUSION_MODES, fuse_scores, tail_classes
from tests.fuse_fixtures import CLASSES, annotations, tiny_cache, tiny_head


class Random:
    """Random scores; counts its calls."""

    level, instance_counts = "embedding", ()

    def __init__(self, seed: int, classes: int = len(CLASSES)):
        self.name, self.seed, self.classes, self.calls = f"random {seed}", seed, classes, 0

    def scores(self, rois):
        self.calls += 1
        rng = np.random.default_rng(self.seed + rois.image_id)
        return softmax(rng.normal(0, 2, (len(rois), self.classes + 1)))


@pytest.fixture(scope="module", params=[False, True], ids=["agnostic", "specific"])
def cache(request, tmp_path_factory):
    return tiny_cache(tmp_path_factory.mktemp("c") / "val.zarr", annotations(), specific=request.param)


def assert_equal(a: Detections, b: Detections):
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert a.rles == b.rles


@pytest.mark.parametrize("mode", ["original", "calibrated", "avg", "cat", "cat-thr", "cat-scale"])
def test_detections_are_fusion_then_nms_image_by_image(cache, mode):
    scorer = Random(0)
    found = fuse.detect(cache, scorer, mode=mode, tail=10, max_detections=20)
    tail = tail_classes(CLASSES["instance_count"], 10)
    for rois in cache:
        scores = fuse_scores(Original().scores(rois), scorer.scores(rois), tail, mode)
        roi, cls, score = class_nms(rois.boxes, scores, 0.5, 0.0, 20)
        part = found.take(found.image_ids == rois.image_id)
        box = rois.boxes[roi] if rois.boxes.ndim == 2 else rois.boxes[roi, cls]
        np.testing.assert_array_equal(part.category_ids, CLASSES["category_id"].to_numpy()[cls])
        np.testing.assert_array_equal(part.scores, score)
        np.testing.assert_array_equal(part.boxes, box)
        assert part.rles == encode_masks(rois.masks[roi], box, rois.height, rois.width)


def test_rows_together_equal_rows_alone_and_share_scores_and_masks(cache, monkeypatch):
    encoded = []
    monkeypatch.setattr(inference, "encode_masks", lambda *a: encoded.append(len(a[0])) or encode_masks(*a))
    scorer = Random(1)
    table = {mode: Fusion.for_cache(cache, FusionConfig(mode=mode, max_detections=15), scorer) for mode in FUSION_MODES}
    together = detect_many(cache, table)
    assert scorer.calls == len(cache)
    if cache.fields["boxes"] == (4,):
        assert sum(encoded) <= cache.offsets[-1]
    for mode in FUSION_MODES:
        assert_equal(together[mode], fuse.detect(cache, scorer, mode=mode, max_detections=15))
    assert detect_many(cache, table, masks=False)["cat"].rles is None


def test_a_pair_of_scorers_replaces_the_original(cache):
    one, two = Random(2), Random(3)
    assert_equal(fuse.detect(cache, (one, two), mode="original"), fuse.detect(cache, one, mode="calibrated"))


def test_det_takes_tail_classes_from_one_detector_and_the_rest_from_the_other(cache):
    scorer = Random(4)
    options = {"max_detections": 12}
    merged = fuse.detect(cache, scorer, mode="det", tail=100, **options)
    parts = [fuse.detect(cache, scorer, mode=mode, **options) for mode in ("original", "calibrated")]
    tail_ids = CLASSES["category_id"][CLASSES["instance_count"] < 100]
    for image_id in cache.images["image_id"]:
        scores = []
        for part, is_tail in zip(parts, (False, True), strict=True):
            scores += part.scores[
                (part.image_ids == image_id) & (np.isin(part.category_ids, tail_ids) == is_tail)
            ].tolist()
        expected = np.sort(np.array(scores, np.float32))[::-1][:12]
        np.testing.assert_array_equal(merged.scores[merged.image_ids == image_id], expected)


@pytest.mark.parametrize("mode", ["original", "det"])
def test_a_cap_of_minus_one_is_none(cache, mode):
    found = fuse.detect(cache, Random(4), mode=mode, max_detections=-1)
    assert_equal(found, fuse.detect(cache, Random(4), mode=mode, max_detections=None))


def test_bars_are_for_terminals_only(cache, capsys):
    detect_many(cache, {"": Fusion.for_cache(cache, FusionConfig(mode="original"))}, masks=False, progress=True)
    assert capsys.readouterr().err == ""


def test_merged_ties_are_ordered_by_class_then_roi():
    original = NMSResult(np.array([5, 2]), np.array([1, 3]), np.array([0.5, 0.5], np.float32))
    new = NMSResult(np.array([9, 1]), np.array([2, 1]), np.array([0.5, 0.5], np.float32))
    roi, cls, _ = join_by_class(original, new, np.array([False, False, True, False]), 3)
    assert (roi.tolist(), cls.tolist()) == ([5, 9, 2], [1, 2, 3])


def test_oracle_scores_true_classes_only(cache):
    found = fuse.detect(cache, mode="props-gt")
    for rois in cache:
        part = found.take(found.image_ids == rois.image_id)
        true = set(CLASSES["category_id"].to_numpy()[np.unique(rois.labels)])
        assert set(part.category_ids) == true


def test_per_class_keeps_the_best_of_the_dataset(cache, monkeypatch):
    scorer = Random(5)
    everything = fuse.detect(cache, scorer, mode="calibrated", max_detections=None)
    expected = everything.top_per_class(7)
    assert_equal(
        fuse.detect(cache, scorer, mode="calibrated", max_detections=None, max_detections_per_class=7), expected
    )
    prune = DetectionAccumulator._prune
    monkeypatch.setattr(accumulator, "PRUNE_AFTER", 0)
    calls = []
    monkeypatch.setattr(DetectionAccumulator, "_prune", lambda self: calls.append(1) or prune(self))
    assert_equal(
        fuse.detect(cache, scorer, mode="calibrated", max_detections=None, max_detections_per_class=7), expected
    )
    assert len(calls) > 1


def test_a_cap_and_the_best_of_each_class_go_together(cache, monkeypatch):
    monkeypatch.setattr(accumulator, "PRUNE_AFTER", 0)
    everything = fuse.detect(cache, Random(5), mode="calibrated", max_detections=8)
    found = fuse.detect(cache, Random(5), mode="calibrated", max_detections=8, max_detections_per_class=2)
    assert_equal(found, everything.top_per_class(2))


@pytest.mark.parametrize("cpus", [1, 2, 5])
@pytest.mark.parametrize("per_class", [None, 7])
def test_images_side_by_side_give_what_one_after_the_other_does(cache, monkeypatch, cpus, per_class):
    monkeypatch.setattr(accumulator, "PRUNE_AFTER", 0)
    monkeypatch.setattr(prefetch, "available_cpus", lambda: cpus)
    before = torch.get_num_threads()
    scorer = Random(8)
    fusion = Fusion.for_cache(cache, FusionConfig(max_detections=None), scorer)
    expected = []
    for rois in cache:
        roi, cls, score = fusion.detect(rois)
        expected.append((np.full(len(roi), rois.image_id), CLASSES["category_id"].to_numpy()[cls], score))
    image_id, category_id, score = map(np.concatenate, zip(*expected, strict=True))
    best = slice(None) if per_class is None else top_of_groups(category_id, score, per_class)
    found = fuse.detect(cache, scorer, max_detections=None, max_detections_per_class=per_class)
    np.testing.assert_array_equal(found.image_ids, image_id[best])
    np.testing.assert_array_equal(found.category_ids, category_id[best])
    np.testing.assert_array_equal(found.scores, score[best])
    assert torch.get_num_threads() == before


def test_thresholds_that_threads_read_late_change_nothing(cache, monkeypatch):
    """Every image is detected with the thresholds from before the first."""
    monkeypatch.setattr(accumulator, "PRUNE_AFTER", 0)
    options = {"mode": "calibrated", "max_detections": None, "max_detections_per_class": 3}
    expected = fuse.detect(cache, Random(9), **options)
    monkeypatch.setattr(inference, "parallel_map", lambda work, count, _: iter([work(i) for i in range(count)]))
    monkeypatch.setattr(inference, "closing", nullcontext)
    assert_equal(
        fuse.detect(cache, Random(9), mode="calibrated", max_detections=None, max_detections_per_class=3), expected
    )


def test_columns_that_no_row_needs_are_not_read(cache, monkeypatch):
    read = []
    image_at = type(cache).image_at
    monkeypatch.setattr(type(cache), "image_at", lambda *a: read.append(a[2]) or image_at(*a))
    fuse.detect(cache, mode="original", masks=False)
    blind = Random(0)
    blind.level = "logits"
    fuse.detect(cache, blind)
    fuse.detect(cache, Random(0))
    assert read == [set()] * 6 + [{"masks"}] * 6 + [{"features", "masks"}] * 6


def test_only_a_few_images_are_in_memory_at_once(monkeypatch):
    monkeypatch.setattr(prefetch, "available_cpus", lambda: 2)
    begun = []
    for i, value in enumerate(prefetch.parallel_map(lambda i: begun.append(i) or i, 20)):
        assert value == i and len(begun) <= i + 2 * 2
    assert len(begun) == 20


def test_the_first_image_that_fails_is_named_and_no_other_is_begun(monkeypatch):
    monkeypatch.setattr(prefetch, "available_cpus", lambda: 2)
    begun = []

    def work(i):
        begun.append(i)
        if i >= 3:
            raise ValueError(f"image {i}")
        return i

    with pytest.raises(ValueError, match="image 3"):
        list(prefetch.parallel_map(work, 1000))
    assert len(begun) < 20


def test_an_interrupt_ends_the_work(cache, monkeypatch):
    calls = []

    class Interrupted(Random):
        def scores(self, rois):
            calls.append(rois.image_id)
            raise KeyboardInterrupt

    monkeypatch.setattr(prefetch, "available_cpus", lambda: 1)
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        fuse.detect(cache, Interrupted(0))
    assert len(calls) <= 2 and torch.get_num_threads() == before


@pytest.mark.long
def test_a_cascade_with_a_trained_head(tmp_path):
    cache = tiny_cache(tmp_path / "val.zarr", annotations(), stages=3)
    head = load_head(tiny_head(tmp_path / "head", cache))
    found = fuse.detect(cache, head, mode="cat", tail=100)
    assert len(found) > 0 and set(found.image_ids) == set(cache.images["image_id"])


@pytest.mark.parametrize(
    ("scorer", "options", "message"),
    [
        (None, {}, "mode is 'cat', which needs a calibrated scorer"),
        (Random(0), {"mode": "concat"}, "mode is 'concat', expected one of original, calibrated"),
        (Random(0, classes=9), {}, r"image 7, fusion 'cat': scorer 'random 0' gave scores of shape \(18, 10\)"),
        (Random(0), {"score_threshold": -1}, "score_threshold"),
        (Random(0), {"tail_mask": np.zeros(3, bool)}, r"tail_mask is bool \(3,\)"),
    ],
)
def test_errors(cache, scorer, options, message):
    with pytest.raises(ValueError, match=message):
        fuse.detect(cache, scorer, **options)


def test_nan_scores_name_the_image(cache):
    class Broken(Random):
        def scores(self, rois):
            return super().scores(rois) * np.nan

    with pytest.raises(ValueError, match="image 7, fusion 'calibrated': scores contain NaN"):
        fuse.detect(cache, Broken(0), mode="calibrated")


def test_json_round_trip_is_exact(cache, tmp_path, monkeypatch):
    found = fuse.detect(cache, Random(6))
    found.to_json(tmp_path / "d.json")
    monkeypatch.setattr("fuse.detections.RECORDS_AT_ONCE", 7)
    found.to_json(tmp_path / "out" / "d.json")
    assert (tmp_path / "out" / "d.json").read_bytes() == (tmp_path / "d.json").read_bytes() and len(found) > 7
    assert_equal(Detections.from_json(tmp_path / "out" / "d.json"), found)
    records = json.loads((tmp_path / "out" / "d.json").read_text())
    assert list(records[0]) == ["image_id", "category_id", "score", "bbox", "segmentation"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["d.json"]
    without = fuse.detect(cache, Random(6), masks=False)
    without.to_json(tmp_path / "d.json")
    assert_equal(Detections.from_json(tmp_path / "d.json"), without)


def test_images_detections_are_joined(cache):
    found = fuse.detect(cache, Random(6), masks=False)
    category_ids = cache.classes["category_id"].to_numpy()
    labels = np.searchsorted(category_ids, found.category_ids)
    ids = cache.images["image_id"].tolist()
    images = [ImageDetections(found.boxes[i], labels[i], found.scores[i]) for i in (found.image_ids == n for n in ids)]
    assert_equal(Detections.of_images(ids, images, category_ids), found)
    assert len(Detections.of_images([], [], category_ids)) == 0


def test_no_detections_round_trip(cache, tmp_path):
    nothing = fuse.detect(cache, Random(6), score_threshold=1.0)
    nothing.to_json(tmp_path / "d.json")
    assert len(nothing) == 0 and len(Detections.from_json(tmp_path / "d.json")) == 0
    assert "none" in repr(nothing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "d.json: not a file of LVIS or COCO results"),
        ('[{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]}]', "missing required field `score`"),
        (
            '[{"image_id": 1, "category_id": 2, "score": "a", "bbox": [0, 0, 1, 1]}]',
            "record 0: score is 'a', expected a number",
        ),
        (
            '[{"image_id": 1, "category_id": 2, "score": 1, "bbox": [0, 0, 1]}]',
            r"record 0: bbox is \[0, 0, 1\], expected four numbers",
        ),
    ],
)
def test_results_that_are_none(tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Detections.from_json(tmp_path / "d.json")


def test_missing_results(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"d\.json"):
        Detections.from_json(tmp_path / "d.json")


def test_an_interrupted_write_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("extract.utils.files.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fuse.detect(cache, Random(6), masks=False).to_json(tmp_path / "out" / "d.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_representations(cache):
    found = fuse.detect(cache, Random(7), max_detections=3)
    assert "18" in repr(found) and "6 with any, at most 3 in one" in repr(found)
    assert found._repr_html_().startswith("<table>")


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"boxes have shape \(1, 4\), expected \(2, 4\)"):
        Detections(np.zeros(2, int), np.zeros(2, int), np.zeros(2), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="3 masks, expected 2"):
        Detections(np.zeros(2, int), np.zeros(2, int), np.zeros(2), np.zeros((2, 4)), [{}] * 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("largest", [0, 7, 70_000, 2**45])
def test_the_best_of_each_group_are_first_as_lexsort_has_them(dtype, largest):
    rng = np.random.default_rng(0)
    groups = rng.integers(-(largest // 2), largest, 500, endpoint=True)
    scores = rng.choice([-np.inf, -2.5, -0.0, 0.0, 1e-40, 0.1, 1 / 3, 1.0, np.inf], 500).astype(dtype)
    assert best_first(groups, scores).tolist() == np.lexsort((-scores, groups)).tolist()
    assert best_first(groups[:0], scores[:0]).tolist() == []


def test_top_of_groups_prefers_the_earlier_of_equals():
    groups, scores = np.array([2, 1, 2, 2, 1, 2]), np.array([0.5, 0.1, 0.9, 0.5, 0.2, 0.5])
    assert top_of_groups(groups, scores, 2).tolist() == [0, 1, 2, 4]
    assert top_of_groups(groups[:0], scores[:0], 2).tolist() == []
    assert top_of_groups(groups, scores, 0).tolist() == []


@pytest.mark.process
def test_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, fuse, fuse.config; assert callable(fuse.__getattr__); "
        "print([m for m in ('torch', 'numba', 'zarr', 'pandas', 'matplotlib', 'hotcoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(callable(getattr(fuse, name)) for name in set(fuse.__all__) - {"plots"})  # a module
    assert fuse.plots.recall and set(fuse.__all__) == set(dir(fuse))


def test_the_first_image_does_not_count_for_the_time_left(monkeypatch):
    """Its time may be that of compiling kernels."""
    now = [0.0]
    bar = tqdm(total=1000, file=io.StringIO(), mininterval=0)
    monkeypatch.setattr(bar, "_time", lambda: now[0])
    bar.start_t = bar.last_print_t = 0.0
    for moment in (8.0, 8.1, 8.2):
        now[0] = moment
        inference._advance(bar)
    assert bar.n == 3
    assert bar.format_dict["rate"] == pytest.approx(10)
