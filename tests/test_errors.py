"""Where the errors are: hotcoco's figures for the whole dataset, and bins that add up to them."""

from __future__ import annotations

import hotcoco
import numpy as np
import pandas as pd
import pytest

import fuse
from fuse.__main__ import main
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.engines import hotcoco_inputs, hotcoco_lvis_evaluation
from fuse.evaluation.errors import TIDE_TYPES
from tests.fuse_fixtures import CLASSES, annotations, as_coco, write_tiny
from tests.test_resampling import make_detections

BINS = (0.0, 10.0, 100.0, float("inf"))


@pytest.fixture(scope="module")
def content() -> dict:
    return annotations(images=12, seed=3)


@pytest.fixture(scope="module")
def detections(content) -> Detections:
    return make_detections(content, 0.12, 0)


def test_error_table_is_hotcocos_by_bin(content, detections):
    better = make_detections(content, 0.05, 0)
    table = fuse.error_table(content, {"a": detections, "b": better}, CLASSES, bins=BINS, iou_type="bbox")
    assert table.index.tolist() == [("bbox", "a"), ("bbox", "b")]
    row, evaluation = table.iloc[0], hotcoco_lvis_evaluation(load_annotations(content), detections, "bbox")
    gained = evaluation.tide_errors()["delta_ap"]
    assert row[list(TIDE_TYPES)].tolist() == pytest.approx([100 * gained[name] for name in TIDE_TYPES])
    calibration = evaluation.calibration()
    assert row["ECE"] == pytest.approx(100 * calibration["ece"])
    assert row["ECE[10,100)"] == pytest.approx(100 * calibration["per_category"]["cat"]), "the only class of its bin"
    matrix = hotcoco.COCOeval(*hotcoco_inputs(load_annotations(content), detections, "bbox"), "bbox").confusion_matrix(
        max_det=300
    )["matrix"]
    objects = matrix[:2].sum()  # of classes 0 and 1, the bin (0,10)
    assert row["confused(0,10)"] == pytest.approx(100 * (matrix[:2, :5].sum() - matrix[0, 0] - matrix[1, 1]) / objects)
    assert row["up(0,10)"] == pytest.approx(100 * matrix[:2, 2:5].sum() / objects)
    assert row["missed(0,10)"] == pytest.approx(100 * matrix[:2, 5].sum() / objects)
    assert row["up[100,-)"] == 0 and table.loc[("bbox", "b"), "Both"] < row["Both"]


def test_confusions_name_the_look_alikes(content, detections):
    table = fuse.confusions(content, detections, CLASSES)
    row = fuse.error_table(content, {"": detections}, CLASSES, bins=BINS, iou_type="bbox").iloc[0]
    counts = pd.Series([a["category_id"] for a in content["annotations"]]).value_counts()
    rare = table[table["instance_count"] < 10]
    assert row["confused(0,10)"] == pytest.approx(100 * rare["objects"].sum() / (counts[3] + counts[4]))
    first = table.iloc[0]
    category_id = CLASSES.set_index("name").loc[first["name"], "category_id"]
    assert first["share"] == pytest.approx(100 * first["objects"] / counts[category_id])
    assert (table["name"] != table["taken_for"]).all() and table["objects"].is_monotonic_decreasing


def test_exhaustive_datasets_and_empty_results(content, detections):
    table = fuse.error_table(as_coco(content), {"a": detections}, CLASSES, iou_type=("segm", "bbox"), max_detections=5)
    assert table.index.tolist() == [("segm", "a"), ("bbox", "a")] and table["Bkg"].notna().all()
    nothing = fuse.error_table(content, {"a": detections.take(slice(0))}, CLASSES, iou_type="bbox").iloc[0]
    assert np.isnan(nothing["ECE"]) and nothing["missed(0,10)"] == 100 and nothing["confused(0,10)"] == 0


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
