"""Evaluation of exhaustive datasets by COCO's protocol and of federated ones by LVIS's: equal to the official code."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import sys

import numpy as np
import pandas as pd
import pytest
from hotcoco import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fuse.detections import Detections
from fuse.evaluation.class_bootstrap import bootstrap_intervals
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate, per_class_ap
from fuse.evaluation.protocols import resolve_protocol
from tests.fuse_fixtures import CLASSES, annotations, as_coco

SIZE = 144
COCO_STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR", "ARs", "ARm", "ARl"]
"""Our columns in the order of `COCOeval.stats`."""


def ellipse(box: np.ndarray) -> dict:
    """The mask of an ellipse in a box (xyxy)."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    center, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 1e-6)
    inside = ((x - center[0]) / half[0]) ** 2 + ((y - center[1]) / half[1]) ** 2 <= 1
    encoded = rle.encode(np.asfortranarray(inside, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def random_box(rng: np.random.Generator) -> np.ndarray:
    """Half of the boxes are small by COCO's measure, some are large."""
    side = rng.choice([rng.uniform(6, 30, 2), rng.uniform(34, 90, 2), rng.uniform(110, 140, 2)], p=[0.5, 0.4, 0.1])
    corner = rng.uniform(0, SIZE - side)
    return np.concatenate([corner, corner + side]).astype(np.float32)


@pytest.fixture(scope="module")
def classes() -> pd.DataFrame:
    """Ten classes, ids with gaps; the last one is in no image."""
    k = np.arange(10)
    counts = {"image_count": 4**k // 8 + 1, "instance_count": 4**k // 4 + 1}
    tags = {"name": [f"c{i}" for i in k], "frequency": list("rrrccccfff")}
    return pd.DataFrame({"category_id": 3 * k + 2} | tags | counts)


@pytest.fixture(scope="module")
def content(classes) -> dict:
    """30 images of about 8 objects in COCO's format; a sixth are crowd regions."""
    rng = np.random.default_rng(0)
    images = [{"id": 11 * i + 5, "height": SIZE, "width": SIZE, "file_name": f"{i}.png"} for i in range(30)]
    records = []
    for image in images:
        for _ in range(rng.integers(6, 11)):
            box = random_box(rng).astype(np.float64)
            mask = ellipse(box)
            records.append(
                {
                    "id": len(records) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(classes["category_id"][:-1])),
                    "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                    "area": float(rle.area(mask)),
                    "segmentation": mask,
                    "iscrowd": int(rng.random() < 1 / 6),
                }
            )
    categories = [{"id": int(c.category_id), "name": c.name} for c in classes.itertuples()]
    return {"images": images, "annotations": records, "categories": categories}


@pytest.fixture(scope="module")
def detections(content, classes) -> Detections:
    """Jittered objects of right and wrong classes, parts of crowd regions, boxes anywhere, ties and empty masks."""
    rng = np.random.default_rng(1)
    image_ids, category_ids, boxes, masks = [], [], [], []
    for annotation in content["annotations"] * 4:
        x, y, w, h = annotation["bbox"]
        part = rng.choice([1, 0.4])
        box = np.array([x, y, x + part * w, y + part * h]) + rng.normal(0, 0.06, 4) * [w, h, w, h]
        box = random_box(rng) if rng.random() < 0.1 else box.clip(0, SIZE).astype(np.float32)
        right = rng.random() < 0.8
        image_ids.append(annotation["image_id"])
        category_ids.append(annotation["category_id"] if right else int(rng.choice(classes["category_id"])))
        boxes.append(box)
        masks.append(ellipse(box) if rng.random() < 0.97 else ellipse(np.zeros(4)))
    scores = rng.integers(1, 60, len(boxes)).astype(np.float32) / 60
    return Detections(np.array(image_ids), np.array(category_ids), scores, np.array(boxes), masks)


def in_lvis_format(content: dict, classes: pd.DataFrame, seed: int = 2) -> dict:
    """The content with LVIS's fields: some classes are verified to be absent, some annotated in part."""
    rng = np.random.default_rng(seed)
    changed = copy.deepcopy(content)
    for image in changed["images"]:
        present = {a["category_id"] for a in changed["annotations"] if a["image_id"] == image["id"]}
        absent = sorted(set(classes["category_id"].tolist()) - present)
        image["neg_category_ids"] = sorted(rng.choice(absent, 2, replace=False).tolist())
        image["not_exhaustive_category_ids"] = [i for i in sorted(present) if rng.random() < 0.15]
    for category, tag in zip(changed["categories"], classes["frequency"], strict=True):
        category["frequency"] = tag
    return changed


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("options", [{}, {"max_detections": 3}, {"max_detections": 1}, {"fixed_ap": True}])
def test_exhaustive_evaluation_equals_pycocotools(content, classes, detections, iou_type, options):
    tables = [
        per_class_ap(content, detections, classes, iou_type=iou_type, engine=engine, **options)
        for engine in ("native", "hotcoco", "pycocotools")
    ]
    measures = tables[0].columns[4:]
    for table in tables[:2]:
        np.testing.assert_allclose(table[measures], tables[2][measures], rtol=0, atol=1e-9)
    assert tables[0]["AP"].notna().tolist() == [True] * 9 + [False]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_exhaustive_evaluation_equals_pycocotools_used_directly(content, classes, detections, iou_type, tmp_path):
    """From a file of results, with pycocotools' own defaults and means."""
    names = "image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation"
    shapes = detections.xywh.tolist() if iou_type == "bbox" else detections.rles
    columns = (detections.image_ids.tolist(), detections.category_ids.tolist(), detections.scores.tolist(), shapes)
    records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(records))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(tmp_path / "val.json"))
        official = COCOeval(gt, gt.loadRes(str(tmp_path / "results.json")), iou_type)
        official.evaluate()
        official.accumulate()
        official.summarize()
    ours = evaluate(tmp_path / "val.json", detections, classes, iou_type=iou_type).loc[iou_type]
    np.testing.assert_allclose(ours[COCO_STATS] / 100, official.stats, rtol=0, atol=1e-9)
    assert (official.stats > 0).all()


def test_the_means_of_exhaustive_evaluation(content, classes, detections):
    bins = (0, 20, 400, 8000, float("inf"))  # of COCO-LT, in the extended paper
    ours = evaluate(content, detections, classes, iou_type="bbox", bins=bins)
    table = per_class_ap(content, detections, classes, iou_type="bbox")
    names = ["AP(0,20)", "AP[20,400)", "AP[400,8000)", "AP[8000,-)"]
    assert ours.columns.tolist() == [
        *names, "AP", "bAP", "APr", "APc", "APf", "AP50", "AP75", "APs", "APm", "APl",
        "AR@1", "AR@10", "AR", "ARs", "ARm", "ARl",
    ]  # fmt: skip
    row = ours.loc["bbox"]
    assert row["AP(0,20)"] == pytest.approx(table["AP"][table["instance_count"] < 20].mean())
    assert row["AP[8000,-)"] == pytest.approx(table["AP"][table["instance_count"] >= 8000].mean())
    assert row["bAP"] == pytest.approx(row[names].mean()) and row["APr"] == pytest.approx(table["AP"][:3].mean())
    assert ours.attrs["protocol"] == "exhaustive" and ours.attrs["evaluated"]["AP"] == 9
    intervals = bootstrap_intervals(table, bins)
    assert intervals.loc["AP", "low"] < row["AP"] < intervals.loc["AP", "high"]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_crowd_regions_in_files_with_the_fields_of_lvis(content, classes, detections, iou_type):
    """All engines ignore them as COCO's protocol does, though the official `lvis` does not know them."""
    federated = in_lvis_format(content, classes)
    tables = [
        per_class_ap(federated, detections, classes, iou_type=iou_type, engine=engine)
        for engine in ("native", "hotcoco", "lvis")
    ]
    for table in tables[:2]:
        measures = ["AP", "AP50", "AP75", "AR"]
        np.testing.assert_allclose(table[measures], tables[2][measures], rtol=0, atol=1e-9)
    objects = {**federated, "annotations": [{**a, "iscrowd": 0} for a in federated["annotations"]]}
    different = per_class_ap(objects, detections, classes, iou_type=iou_type)["AP"] - tables[0]["AP"]
    assert different.abs().max() > 1


@pytest.mark.parametrize("engine", ["native", "hotcoco", "lvis", "pycocotools"])
def test_a_crowd_region_is_no_object_and_detections_inside_are_no_mistakes(engine):
    """Of class 3, the object is found; two detections lie inside the crowd region and one beside it."""
    image = {"id": 1, "height": 200, "width": 400}
    if engine == "lvis":
        image |= {"neg_category_ids": [4], "not_exhaustive_category_ids": []}

    def annotation(number: int, x: int, side: int, **fields: int) -> dict:
        polygon = [x, 10, x + side, 10, x + side, 10 + side, x, 10 + side]
        box = {"bbox": [x, 10, side, side], "area": side**2, "segmentation": [polygon]}
        return {"id": number, "image_id": 1, "category_id": 3, **box, **fields}

    truth = {
        "images": [image],
        "categories": [{"id": c.category_id, "name": c.name, "frequency": c.frequency} for c in CLASSES.itertuples()],
        "annotations": [annotation(1, 10, 40), annotation(2, 200, 100, iscrowd=1)],
    }
    boxes = np.array([[210, 20, 240, 50], [250, 20, 280, 50], [10, 10, 50, 50]], np.float32)
    n = len(boxes)
    found = Detections(np.ones(n, np.int64), np.full(n, 3), np.linspace(1, 0.5, n, dtype=np.float32), boxes)
    assert per_class_ap(truth, found, CLASSES, iou_type="bbox", engine=engine)["AP"][0] == pytest.approx(100)
    boxes[:2, 1::2] += 100
    beside = Detections(found.image_ids, found.category_ids, found.scores, boxes)
    ap = per_class_ap(truth, beside, CLASSES, iou_type="bbox", engine=engine)["AP"][0]
    assert ap == pytest.approx(100 / 3)  # two mistakes come first


@pytest.mark.parametrize("engine", ["native", "hotcoco", "pycocotools"])
def test_no_detections_score_0(engine):
    empty = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), [])
    result = evaluate(as_coco(annotations()), empty, CLASSES, engine=engine)
    assert (result["AP"] == 0).all() and result["AP[1000,-)"].isna().all()


@pytest.mark.long
@pytest.mark.parametrize("engine", ["native", "hotcoco", "pycocotools"])
def test_input_is_left_as_it_was(content, classes, detections, engine, capsys):
    before, masks = copy.deepcopy(content), copy.deepcopy(detections.rles)
    evaluate(content, detections, classes, engine=engine)
    assert content == before and detections.rles == masks
    assert capsys.readouterr().out == ""  # pycocotools prints


def test_the_kind_of_a_dataset_is_told_from_the_file_and_can_be_set(content, classes, detections, caplog):
    caplog.set_level(logging.INFO)
    options = {"iou_type": "bbox"}
    exhaustive = evaluate(content, detections, classes, **options)
    federated = in_lvis_format(content, classes)
    lvis = evaluate(federated, detections, classes, **options)
    fields = "neg_category_ids or not_exhaustive_category_ids"
    assert [record.getMessage() for record in caplog.records] == [
        f"annotations: no image has {fields}; exhaustive annotations, COCO's protocol",
        f"annotations: some images have {fields}; federated annotations, LVIS's protocol",
    ]
    caplog.clear()
    again = evaluate(federated, detections, classes, protocol="exhaustive", **options)
    pd.testing.assert_frame_equal(again, exhaustive)
    (record,) = caplog.records
    assert "but protocol is 'exhaustive'; exhaustive annotations, COCO's protocol" in record.getMessage()
    assert lvis.loc["bbox", "AP"] > exhaustive.loc["bbox", "AP"] and "APs" not in lvis


def test_lvis_fields_without_negative_categories_are_warned_of(content, classes, detections, caplog):
    """What everybody tries first with a COCO file, and what its AP means."""
    filled = copy.deepcopy(content)
    for image in filled["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    too_high = evaluate(filled, detections, classes, iou_type="bbox")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "no image has a negative category (neg_category_ids)" in warning and "false positives" in warning
    assert "'exhaustive'" in warning
    caplog.clear()
    right = evaluate(filled, detections, classes, iou_type="bbox", protocol="exhaustive")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert too_high.loc["bbox", "AP"] > right.loc["bbox", "AP"] + 1


def test_the_warning_is_for_files_that_are_evaluated_as_federated(content, caplog):
    assert resolve_protocol(load_annotations(content), "federated") == "federated"
    assert caplog.records[-1].getMessage().startswith("annotations: no image has a negative category")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "coco"}, "protocol is 'coco', expected 'federated' or 'exhaustive'"),
        ({"engine": "lvis"}, "engine is 'lvis', expected 'native' or 'hotcoco' or 'pycocotools' for COCO's protocol"),
        (
            {"engine": "pycocotools", "protocol": "federated"},
            "engine is 'pycocotools', expected 'native' or 'hotcoco' or 'lvis' for LVIS's protocol",
        ),
        ({"max_detections": 0}, "max_detections is 0, expected at least 1"),
    ],
)
def test_options_that_are_refused(content, classes, detections, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate(content, detections, classes, **options)


def test_a_missing_referee_is_named_with_its_extra(content, classes, detections, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ImportError, match=r"pip install 'tailcal\[lvis\]'"):
        evaluate(content, detections, classes, engine="pycocotools")


@pytest.mark.parametrize("protocol", ["federated", "exhaustive"])
def test_a_file_may_list_fewer_categories_than_the_class_table(content, classes, detections, protocol):
    """As files of a part of the data do; detections of the others are mistakes that no AP counts."""
    every = per_class_ap(content, detections, classes, iou_type="bbox", protocol=protocol)
    fewer = {**content, "categories": content["categories"][:-1]}
    pd.testing.assert_frame_equal(per_class_ap(fewer, detections, classes, iou_type="bbox", protocol=protocol), every)
    with pytest.raises(ValueError, match="annotations have 10 categories, the class table 9; 1 are in one only"):
        evaluate(content, detections, classes[:-1])
