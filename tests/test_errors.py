"""Where the errors are: hotcoco's figures for all classes, and bins that are means of theirs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fuse
from fuse.__main__ import main
from fuse.detections import Detections
from fuse.evaluation.coco_engines import hotcoco_coco_evaluation
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.engines import hotcoco_lvis_evaluation
from fuse.evaluation.outcomes import object_outcomes
from fuse.evaluation.row_errors import TIDE_TYPES, _localisation_aware_error
from fuse.gallery import class_outcomes, look_alikes
from fuse.ops.error_kernels import BKG, BOTH, CLS, DUPE, LOC, NO_ERROR, error_types
from fuse.ops.matching_kernels import TRUE_POSITIVE
from tests.fuse_fixtures import CLASSES, annotations, as_coco, write_tiny
from tests.test_resampling import make_detections

BINS = (0.0, 10.0, 100.0, float("inf"))


@pytest.fixture(scope="module")
def content() -> dict:
    return annotations(images=12, seed=3)


@pytest.fixture(scope="module")
def detections(content) -> Detections:
    return make_detections(content, 0.12, 0)


@pytest.fixture(scope="module")
def few(content) -> Detections:
    """Every third detection of a bad detector, so that objects are missed."""
    found = make_detections(content, 0.3, 0)
    return found.take(np.random.default_rng(5).random(len(found)) < 0.35)


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("protocol", ["federated", "exhaustive"])
@pytest.mark.parametrize("kind", ["many", "few"])
def test_error_types_and_calibration_are_hotcocos(content, detections, few, kind, protocol, iou_type):
    found = detections if kind == "many" else few
    content = content if protocol == "federated" else as_coco(content)
    (row,) = fuse.error_table(content, {"a": found}, CLASSES, bins=BINS, iou_type=iou_type).to_dict("records")
    dataset = load_annotations(content)
    if protocol == "federated":
        evaluation = hotcoco_lvis_evaluation(dataset, found, iou_type)
    else:
        evaluation = hotcoco_coco_evaluation(dataset, found, iou_type, (1, 10, 100))
    gained = evaluation.tide_errors()["delta_ap"]
    assert [row[name] for name in TIDE_TYPES] == pytest.approx([100 * gained[name] for name in TIDE_TYPES])
    assert all(row[name] > 0 for name in (["Cls", "Loc", "Dupe"] if kind == "many" else ["Cls", "Loc", "Both", "Miss"]))
    if protocol == "federated":
        calibration = evaluation.calibration()
        assert row["ECE"] == pytest.approx(100 * calibration["ece"])
        assert row["ECE[10,100)"] == pytest.approx(100 * calibration["per_category"]["cat"]), (
            "the only class of its bin"
        )


@pytest.mark.parametrize(
    ("objects", "found", "missed"),
    [
        ([0, 1], [(0, 0, 0.9)], 50),  # hotcoco: 0
        ([0, 1], [(0, 0, 0.9), (1, 2, 0.8)], 50),  # hotcoco and tidecv: 0
        ([0, 0], [(0, 0, 0.5), (0, 2, 0.5)], 50 - 50 / 101),  # tidecv: 0, as it puts the false positive first
        ([0, 0], [(0, 0, 0.5), (0, 2, 0.4)], 50 - 50 / 101),
    ],
    ids=["class missed", "class missed, with a false positive", "ties", "no ties"],
)
def test_gains_where_tools_differ(objects, found, missed):
    """An object of class k is at place 0 or 1; of each detection: its class, its place, its score."""
    boxes = np.float32([[10, 10, 60, 60], [200, 200, 250, 250], [300, 10, 340, 50]])
    ids = CLASSES["category_id"].to_numpy(np.int64)
    records = [
        {
            "id": i,
            "image_id": 1,
            "category_id": int(ids[k]),
            "bbox": [*boxes[i][:2].tolist(), 50.0, 50.0],
            "area": 2500.0,
        }
        for i, k in enumerate(objects)
    ]
    categories = [{"id": int(i), "name": name} for i, name in zip(ids, CLASSES["name"], strict=True)]
    images = [{"id": 1, "width": 400, "height": 400}]
    content = {"images": images, "annotations": records, "categories": categories}
    labels, places, scores = map(list, zip(*found, strict=True))
    detections = Detections(np.ones(len(found), np.int64), ids[labels], np.float32(scores), boxes[places])
    row = fuse.error_table(content, {"a": detections}, CLASSES, bins=BINS, iou_type="bbox").iloc[0]
    assert row["Miss"] == pytest.approx(missed)


def test_bins_are_means_of_their_classes(content, detections):
    """Classes 0 and 1, 2, and 3; class 4 has no objects. A table with a bin of each class is that of the classes."""
    table = fuse.error_table(content, {"a": detections}, CLASSES, bins=BINS, iou_type="bbox").iloc[0]
    each = fuse.error_table(
        content, {"a": detections}, CLASSES, bins=(0, 5, 10, 100, 1000, 5000), iou_type="bbox"
    ).iloc[0]
    names = ["(0,5)", "[5,10)", "[10,100)", "[100,1000)"]
    for kind in (*TIDE_TYPES, "LaECE"):
        own = [each[f"{kind}{name}"] for name in names]
        assert table[f"{kind}(0,10)"] == pytest.approx(np.mean(own[:2]))
        if kind == "LaECE":
            assert table[f"{kind}[100,-)"] == pytest.approx(np.mean([own[3], each["LaECE[1000,5000)"]])), (
                "class 4 as well"
            )
            continue
        assert table[f"{kind}[100,-)"] == pytest.approx(own[3])
        assert table[kind] == pytest.approx(np.mean(own)) and np.isnan(each[f"{kind}[1000,5000)"])


def test_localisation_aware_error_counts_iou():
    """Two detections of a bin of scores: one on an object with IoU 0.8, one on nothing."""
    scores, ious = np.array([0.61, 0.63, 0.9]), np.array([0.8, 0.0, 0.9])
    found = _localisation_aware_error(np.array([0, 0, 2]), scores, ious, 3)
    precision, mean_iou = 1 / 2, 0.8
    assert found[0] == pytest.approx(100 * abs(0.62 - precision * mean_iou))
    assert np.isnan(found[1]) and found[2] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_kernel_of_error_types_equals_its_reference(seed):
    """A reference that follows TIDE's definitions, on random overlaps in one image."""
    rng = np.random.default_rng(seed)
    num_classes, objects, count = 3, 6, 40
    gt_classes, ignored = np.sort(rng.integers(num_classes, size=objects)), rng.random(objects) < 0.2
    classes = np.sort(rng.integers(num_classes, size=count))
    overlaps = rng.random((count, objects)) * rng.choice([0.05, 0.4, 1], (count, 1))
    outcomes, matched_to = np.zeros(count, np.uint8), np.full(count, -1)
    for n in range(count):
        free = [g for g in range(objects) if gt_classes[g] == classes[n] and not ignored[g] and g not in matched_to]
        free = [g for g in free if overlaps[n, g] >= 0.5]
        if free:
            matched_to[n] = max(free, key=lambda g: overlaps[n, g])
            outcomes[n] = TRUE_POSITIVE
    types, targets, taken = np.empty(count, np.uint8), np.empty(count, np.int64), np.zeros(objects, bool)
    places, first = np.arange(count + 1) * objects, np.zeros(count, np.int64)
    error_types(classes, gt_classes, ignored, first, places, overlaps.ravel(), outcomes, types, targets, taken)
    assert set(np.flatnonzero(taken)) == set(matched_to) - {-1}
    for n in range(count):
        same = np.where((gt_classes == classes[n]) & ~ignored, overlaps[n], 0)
        other = np.where((gt_classes != classes[n]) & ~ignored, overlaps[n], 0)
        if outcomes[n] == TRUE_POSITIVE:
            expected, target = NO_ERROR, matched_to[n]
        elif 0.1 <= same.max() < 0.5:
            expected, target = LOC, same.argmax()
        elif other.max() >= 0.5:
            expected, target = CLS, other.argmax()
        else:
            expected, target = DUPE if same.max() >= 0.5 else BKG if other.max() <= 0.1 else BOTH, -1
        assert (types[n], targets[n]) == (expected, target)


def test_objects_are_taken_for_what_the_plots_say(content, detections):
    """One definition: the best detection on an object, by boxes, in the table, the list of confusions and the plots."""
    rows = fuse.error_table(content, {"": detections}, CLASSES, bins=BINS, iou_type=("segm", "bbox"))
    outcomes = object_outcomes(load_annotations(content), detections, CLASSES)
    counts = class_outcomes(outcomes, np.zeros(5, bool))
    rare = outcomes.labels < 2
    wrong = rare & (outcomes.taken_for >= 0) & ~outcomes.named
    for row in rows.to_dict("records"):
        assert row["confused(0,10)"] == pytest.approx(100 * counts[:2, 1:3].sum() / counts[:2].sum())
        assert row["missed(0,10)"] == pytest.approx(100 * counts[:2, 3].sum() / counts[:2].sum())
        assert row["up(0,10)"] == pytest.approx(100 * (outcomes.taken_for[wrong] >= 2).sum() / rare.sum())
        assert row["up[100,-)"] == 0
    table = fuse.confusions(content, detections, CLASSES)
    assert table[table["instance_count"] < 10]["objects"].sum() == wrong.sum() > 0
    first = table.iloc[0]
    label = CLASSES["name"].tolist().index(first["name"])
    assert look_alikes(outcomes, label)[0][1] == first["objects"]
    assert first["share"] == pytest.approx(100 * first["objects"] / (outcomes.labels == label).sum())
    assert (table["name"] != table["taken_for"]).all() and table["objects"].is_monotonic_decreasing
    shuffled = fuse.confusions(content, detections, CLASSES.iloc[[2, 0, 4, 1, 3]].reset_index(drop=True))
    columns = ["name", "taken_for", "objects"]
    assert set(map(tuple, shuffled[columns].to_numpy())) == set(map(tuple, table[columns].to_numpy()))
    assert fuse.confusions(content, detections.take(slice(0)), CLASSES).empty


def test_exhaustive_datasets_and_empty_results(content, detections):
    table = fuse.error_table(as_coco(content), {"a": detections}, CLASSES, iou_type=("segm", "bbox"), max_detections=5)
    assert table.index.tolist() == [("segm", "a"), ("bbox", "a")] and table["Bkg"].notna().all()
    nothing = fuse.error_table(content, {"a": detections.take(slice(0))}, CLASSES, iou_type="bbox").iloc[0]
    assert np.isnan(nothing["ECE"]) and nothing["missed(0,10)"] == 100 and nothing["confused(0,10)"] == 0
    assert nothing["Miss"] == 100 and nothing["Miss[10,100)"] == 100 and nothing["Cls"] == 0


def test_scores_above_1_have_no_calibration_error(content, detections, caplog):
    logits = Detections(detections.image_ids, detections.category_ids, 9 * detections.scores, detections.boxes)
    table = fuse.error_table(content, {"a": logits}, CLASSES, iou_type="bbox")
    assert table.filter(like="ECE").isna().all(axis=None) and "have no calibration error" in caplog.text


@pytest.mark.long
def test_commands_say_where_the_errors_are(tmp_path, capsys):
    annotation_file, cache, head = map(str, write_tiny(tmp_path))
    where = ["--annotations", annotation_file, "--cache", cache, "--errors", "--bootstrap", "0"]
    assert main([*where, "--head", head, "--out", str(tmp_path / "cat"), "--tail", "10"]) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "cat" / "errors.csv", index_col=["iou_type", "row"])
    assert table.index.tolist() == [("segm", "original"), ("segm", "cat")] and "Mask errors" in printed
    assert table["confused(0,10)"].iloc[1] < table["confused(0,10)"].iloc[0], "the head separates rare classes"
    assert main(["evaluate", str(tmp_path / "cat" / "detections.json"), *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    confused = next(line for line in lines if line.startswith("confused(0,10)"))
    assert float(confused.split()[-1]) == pytest.approx(table["confused(0,10)"].iloc[1], abs=0.06)
    assert not any("intervals" in line for line in lines)
