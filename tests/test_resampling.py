"""The bootstrap over images: equal to evaluating the drawn images as a dataset, and like hotcoco's."""

from __future__ import annotations

from dataclasses import replace

import hotcoco
import numpy as np
import pandas as pd
import pytest

import fuse
from fuse.detections import Detections
from fuse.evaluation.compare import compare_rows
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.engines import hotcoco_inputs
from fuse.evaluation.image_bootstrap import resample
from fuse.evaluation.metrics import evaluate_rows
from fuse.evaluation.protocols import match_rows
from fuse.evaluation.resamples import ap_columns, draw_images
from fuse.evaluation.row_comparison import RowComparison
from fuse.ops.masks import encode_masks
from tests.equivalents import EQUIVALENTS
from tests.fuse_fixtures import CLASSES, SIZE, annotations, as_coco

BINS = (0.0, 10.0, 100.0, float("inf"))


@pytest.fixture(scope="module")
def content() -> dict:
    return annotations(images=12, seed=3)


@pytest.fixture(scope="module")
def rows(content) -> dict[str, Detections]:
    """A bad and a better detector: jittered objects of right and wrong classes, no two scores equal."""
    return {"bad": make_detections(content, 0.12, 0), "better": make_detections(content, 0.06, 1)}


def make_detections(content: dict, jitter: float, seed: int) -> Detections:
    rng = np.random.default_rng(seed)
    objects = content["annotations"] * 4
    xywh = np.array([a["bbox"] for a in objects], float)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = (corners + rng.normal(0, jitter, corners.shape) * np.tile(xywh[:, 2:], 2)).astype(np.float32)
    labels = np.array([a["category_id"] for a in objects])
    wrong = rng.random(len(objects)) < 0.3
    labels[wrong] = rng.choice(CLASSES["category_id"], wrong.sum())
    scores = rng.permutation(len(objects)).astype(np.float32) / len(objects)
    rles = encode_masks(np.full((len(boxes), 28, 28), 255, np.uint8), boxes, *SIZE)
    return Detections(np.array([a["image_id"] for a in objects]), labels, scores, boxes, rles)


def drawn_dataset(content: dict, detections: Detections, weights: np.ndarray) -> tuple[dict, Detections]:
    """The dataset of the drawn images, each as often as it was drawn, and the detections in them."""
    images, objects, parts = [], [], []
    for image, count in zip(content["images"], weights.tolist(), strict=True):
        for copy in range(count):
            image_id = 100 * image["id"] + copy
            images.append({**image, "id": image_id})
            objects += [{**a, "image_id": image_id} for a in content["annotations"] if a["image_id"] == image["id"]]
            part = detections.take(detections.image_ids == image["id"])
            parts.append(replace(part, image_ids=np.full(len(part), image_id)))
    joined = {
        name: np.concatenate([getattr(p, name) for p in parts]) for name in ("image_ids", "category_ids", "scores")
    }
    boxes, rles = np.concatenate([p.boxes for p in parts]), [rle for p in parts for rle in p.rles or []]
    objects = [{**a, "id": i} for i, a in enumerate(objects, 1)]
    return {**content, "images": images, "annotations": objects}, Detections(**joined, boxes=boxes, rles=rles)


@pytest.mark.parametrize("protocol", ["federated", "exhaustive"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_resampled_ap_is_that_of_the_drawn_images(content, rows, protocol, iou_type):
    content = content if protocol == "federated" else as_coco(content)
    dataset, weights = load_annotations(content), draw_images(12, 6, seed=4)
    columns = ap_columns(CLASSES, BINS, 1 if protocol == "federated" else 4)
    (found,) = match_rows(protocol, dataset, [rows["bad"]], iou_type, 8, lambda m: resample(m, columns, weights))
    for b in range(weights.shape[1]):
        drawn, detections = drawn_dataset(content, rows["bad"], weights[:, b])
        options = {"iou_types": [iou_type], "bins": BINS, "protocol": protocol, "max_detections": 8}
        expected = evaluate_rows(load_annotations(drawn), {"": detections}, CLASSES, engine="hotcoco", **options)
        np.testing.assert_allclose(
            found[:, b], expected.summary.iloc[0][[c.name for c in columns]].to_numpy(float), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("seed", range(3))
def test_kernel_equals_its_reference(seed):
    rng = np.random.default_rng(seed)
    images, samples, num_classes, thresholds = 9, 70, 4, np.array([-1, 0, 2])
    weights = draw_images(images, samples, seed)
    labels, in_images = np.sort(rng.integers(0, num_classes - 1, 80)), rng.integers(0, images, 80).astype(np.int32)
    outcomes = rng.choice(3, (80, 3), p=[0.5, 0.4, 0.1]).astype(np.uint8)
    objects = np.flatnonzero((outcomes == 1).any(axis=1) | (rng.random(80) < 0.2))  # what is detected, and more
    starts = [np.searchsorted(of, np.arange(num_classes + 1)) for of in (labels, labels[objects])]
    members = np.array([[True] * num_classes, [False, True, False, True], [False] * num_classes])
    arguments = (weights, starts[0], in_images, outcomes, starts[1], in_images[objects], thresholds, members)
    found = EQUIVALENTS["resampled_ap"]["numba"](*arguments)
    np.testing.assert_allclose(found, EQUIVALENTS["resampled_ap"]["numpy"](*arguments), rtol=0, atol=1e-12)
    assert np.isnan(found[2]).all(), "a column without classes"


def test_resamples_depend_on_images_and_seed_alone():
    weights = draw_images(40, 300, seed=1)
    assert (weights.sum(axis=0) == 40).all() and weights.dtype == np.uint16
    np.testing.assert_array_equal(weights[:, :20], draw_images(40, 20, seed=1))
    assert (weights != draw_images(40, 300, seed=2)).any()


@pytest.fixture(scope="module")
def comparison(content, rows) -> RowComparison:
    return fuse.compare(content, {**rows, "same": rows["bad"]}, CLASSES, iou_type=("segm", "bbox"), bins=BINS)


def test_intervals_and_paired_differences(comparison):
    intervals, differences = comparison.intervals, comparison.differences
    assert comparison.num_samples == 1000 and comparison.baseline == "bad"
    known = intervals.dropna()
    assert (known["low"] <= known["value"]).all() and (known["value"] <= known["high"]).all()
    pd.testing.assert_series_equal(
        intervals["value"].unstack("column")[comparison.samples.columns].loc[comparison.summary.index].stack(),
        comparison.summary[comparison.samples.columns].stack(),
        check_names=False,
    )
    same = differences.xs("same", level="row").dropna()
    assert (same[["difference", "low", "high"]] == 0).all(axis=None) and same["within_noise"].all()
    better = differences.loc["bbox"].loc["better"].loc["AP"]
    assert better["difference"] > 10 and 0 < better["low"] < better["difference"] < better["high"]
    assert comparison.within_noise("bbox", "better") != comparison.within_noise("bbox", "same")
    assert not better["within_noise"] and comparison.within_noise("bbox", "bad") == []
    width = (better["high"] - better["low"]) / 2
    apart = (intervals["high"] - intervals["low"]).xs("AP", level="column").loc["bbox"][["bad", "better"]] / 2
    assert width != pytest.approx(np.hypot(*apart), rel=0.02), "paired: the rows vary together"
    reverse = comparison.differences_from("better").loc["bbox"].loc["bad"].loc["AP"]
    assert [reverse["low"], reverse["high"]] == pytest.approx([-better["high"], -better["low"]])


def test_the_same_call_gives_the_same_intervals(content, rows, comparison):
    again = fuse.compare(content, rows, CLASSES, iou_type="bbox", bins=BINS)
    pd.testing.assert_frame_equal(again.intervals, comparison.intervals.loc[again.intervals.index])
    narrower = fuse.compare(content, rows, CLASSES, iou_type="bbox", bins=BINS, confidence=0.5)
    wide, narrow = ((one.intervals["high"] - one.intervals["low"]).dropna() for one in (again, narrower))
    assert (wide >= narrow).all() and (wide > narrow).any()


def test_without_resamples_there_are_no_intervals(content, rows):
    comparison = fuse.compare(content, rows, CLASSES, iou_type="bbox", bins=BINS, samples=0)
    assert comparison.num_samples == 0 and comparison.intervals["low"].isna().all()
    assert comparison.metrics is comparison.summary and not comparison.differences["within_noise"].any()
    assert "intervals" not in repr(comparison)


def test_a_comparison_shows_its_tables(comparison):
    text = repr(comparison)
    assert text.startswith("Figures in points (0-100).") and "Box AP, in points" in comparison._repr_html_()
    assert "Box AP of bad and differences from it, with 95% intervals over images (1,000 resamples)" in text
    assert text.count("~") >= 12 and comparison._repr_html_().count("<table") == 4
    metrics = comparison.metrics
    assert {"AP_low", "bAP_high", "AP(0,10)_difference", "APr_difference_low", "AP50_within_noise"} <= set(metrics)
    assert metrics.columns[: len(comparison.summary.columns)].tolist() == comparison.summary.columns.tolist()
    assert metrics["AP_difference"].isna().groupby("row").all().to_dict() == {
        "bad": True,
        "better": False,
        "same": False,
    }


@pytest.mark.parametrize("engine", ["hotcoco", "lvis"])
def test_intervals_of_other_engines_are_of_native_matches(content, rows, comparison, engine, caplog):
    found = fuse.compare(content, rows, CLASSES, iou_type="bbox", bins=BINS, engine=engine, samples=20)
    native = fuse.compare(content, rows, CLASSES, iou_type="bbox", bins=BINS, samples=20)
    pd.testing.assert_frame_equal(found.samples, native.samples)
    assert not caplog.records


def test_an_engine_that_differs_is_reported(content, rows, monkeypatch, caplog):
    from fuse.evaluation import engines, protocols

    def shifted(*arguments: object) -> engines.PrecisionRecall:
        found = engines.hotcoco_engine(*arguments)
        return found._replace(precision=np.where(found.precision > 0, found.precision / 2, found.precision))

    monkeypatch.setitem(protocols.LVIS_ENGINES, "hotcoco", shifted)
    fuse.compare(content, {"a": rows["bad"]}, CLASSES, iou_type="bbox", engine="hotcoco", samples=2)
    assert "intervals are of native matches, whose AP of a class differs by up to" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "x"}, "baseline is 'x', expected one of 'bad', 'better'"),
        ({"samples": -1}, "samples is -1, expected at least 0"),
        ({"confidence": 1.0}, "confidence is 1.0, expected between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(content, rows, options, message):
    with pytest.raises(ValueError, match=message):
        fuse.compare(content, rows, CLASSES, **options)
    with pytest.raises(ValueError, match="rows is empty"):
        fuse.compare(content, {}, CLASSES)
    with pytest.raises(ValueError, match="row is 'x', expected one of 'bad', 'better'"):
        fuse.compare(content, rows, CLASSES, iou_type="bbox", samples=2).differences_from("x")


@pytest.mark.long
def test_hotcoco_compares_alike(content, rows):
    """hotcoco 1.3 counts an image that it draws several times once, so its intervals are narrower."""
    dataset = load_annotations(as_coco(annotations(images=60, seed=5)))
    pair = {"a": make_detections(dataset, 0.12, 0), "b": make_detections(dataset, 0.09, 1)}
    evaluated = [_hotcoco_evaluation(dataset, row) for row in pair.values()]
    theirs = hotcoco.compare(*evaluated, n_bootstrap=1000)
    ours = compare_rows(dataset, pair, CLASSES, iou_types=["bbox"], samples=1)
    columns = [column for column in ap_columns(CLASSES, BINS, 4) if column.name in ("AP", "AP50", "AP75")]
    once = np.minimum(draw_images(60, 1000, seed=0), 1)
    a, b = match_rows("exhaustive", dataset, list(pair.values()), "bbox", 100, lambda m: resample(m, columns, once))
    for i, column in enumerate(columns):
        delta = ours.summary.loc[("bbox", "b"), column.name] - ours.summary.loc[("bbox", "a"), column.name]
        assert 100 * theirs["deltas"][column.name] == pytest.approx(delta, abs=1e-9)
        interval, spread = theirs["ci"][column.name], b[i] - a[i]
        assert 100 * interval["std_err"] == pytest.approx(spread.std(), rel=0.1)
        assert 100 * np.array([interval["lower"], interval["upper"]]) == pytest.approx(
            np.quantile(spread, [0.025, 0.975]), abs=0.3 * spread.std()
        )


def _hotcoco_evaluation(dataset: EvaluationDataset, detections: Detections) -> hotcoco.COCOeval:
    evaluation = hotcoco.COCOeval(*hotcoco_inputs(dataset, detections, "bbox"), "bbox")
    evaluation.evaluate()
    return evaluation
