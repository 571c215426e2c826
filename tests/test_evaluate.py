from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import hotcoco
import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from fuse.detections import Detections
from fuse.evaluation.class_bootstrap import bootstrap_intervals
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.engines import lvis_engine
from fuse.evaluation.metrics import evaluate, evaluated_classes, per_class_ap, summarize
from tests.fuse_fixtures import CLASSES, annotations

ROOT = Path(__file__).parents[1]
VAL = ROOT / "tests" / "data" / "lvis_v0.5_val_100.json"
COUNTS = ROOT / "benchmarks" / "data" / "lvis_v0.5_class_counts.json"


@pytest.fixture(scope="module")
def classes():
    table = pd.DataFrame(json.loads(COUNTS.read_text())["categories"])
    return table.rename(columns={"id": "category_id"})


@pytest.fixture(scope="module")
def images():
    """A quarter of the 100 images, with all that have a rare class: the official code is slow."""
    content = json.loads(VAL.read_text())
    rare = {c["id"] for c in content["categories"] if c["frequency"] == "r"}
    with_rare = {a["image_id"] for a in content["annotations"] if a["category_id"] in rare}
    return sorted(with_rare | {image["id"] for image in content["images"][:20]})


@pytest.fixture(scope="module")
def detections(images):
    """Jittered ground truth of right and wrong classes, with ties and empty masks."""
    content, rng = load_annotations(VAL, images), np.random.default_rng(0)
    sizes = {image["id"]: image for image in content["images"]}
    every = [c["id"] for c in content["categories"]]
    image_id, category_id, boxes, masks = [], [], [], []
    for annotation in content["annotations"] * 5:
        image = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        x1, y1, x2, y2 = (np.array([x, y, x + w, y + h]) + rng.normal(0, 0.08, 4) * [w, h, w, h]).tolist()
        box = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
        others = [*image["neg_category_ids"], *image["not_exhaustive_category_ids"], int(rng.choice(every))]
        image_id.append(image["id"])
        category_id.append(annotation["category_id"] if rng.random() < 0.8 else rng.choice(others))
        boxes.append(box)
        mask = np.zeros((image["height"], image["width"]), np.uint8, order="F")
        if rng.random() < 0.98:
            mask[max(0, int(box[1])) : int(box[3]), max(0, int(box[0])) : int(box[2])] = 1
        rle = coco_mask.encode(mask)
        masks.append({"size": rle["size"], "counts": rle["counts"].decode()})
    score = rng.integers(1, 100, len(masks)).astype(np.float32) / 100
    return Detections(np.array(image_id), np.array(category_id, np.int64), score, np.array(boxes, np.float32), masks)


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_equals_the_official_code(iou_type, classes, images, detections):
    options = {"iou_type": iou_type, "image_ids": images}
    ours = evaluate(VAL, detections, classes, **options)
    for engine in ("lvis", "hotcoco"):
        np.testing.assert_allclose(
            ours, evaluate(VAL, detections, classes, engine=engine, **options), rtol=0, atol=1e-9
        )
    assert ours.loc[iou_type, "APr"] > 0 and ours.loc[iou_type, "AP(0,10)"] > 0


@pytest.mark.long
def test_equals_the_official_code_used_directly(classes, images, detections):
    """Without our preparation: LVISResults of records without boxes, its own cap, its own means."""
    dataset = load_annotations(VAL, images)
    lvis_engine(dataset, detections.take(slice(0)), "segm")  # patches the NumPy of lvis
    import lvis

    gt = lvis.LVIS.__new__(lvis.LVIS)
    gt.logger, gt.dataset = logging.getLogger("lvis.lvis"), copy.deepcopy(dict(dataset))
    gt._create_index()
    columns = detections.image_ids, detections.category_ids, detections.scores, detections.rles
    names = "image_id", "category_id", "score", "segmentation"
    records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        official = lvis.LVISEval(gt, lvis.LVISResults(gt, records, max_dets=60), "segm")
    official.run()
    ours = evaluate(VAL, detections, classes, iou_type="segm", image_ids=images, max_detections=60).loc["segm"]
    for name, key in {"AR": "AR@300"}.items() | {(n, n) for n in ("AP", "AP50", "AP75", "APr", "APc", "APf")}:
        assert ours[name] / 100 == pytest.approx(official.results[key], abs=1e-9)


@pytest.mark.long
def test_cap_and_fixed_ap_equal_the_official_code(classes, images, detections):
    for options in ({"max_detections": 20}, {"fixed_ap": True}):
        both = [
            evaluate(VAL, detections, classes, iou_type="bbox", image_ids=images, engine=engine, **options)
            for engine in ("native", "hotcoco", "lvis")
        ]
        np.testing.assert_allclose(both[0], both[2], rtol=0, atol=1e-9)
        np.testing.assert_allclose(both[1], both[2], rtol=0, atol=1e-9)
    few = evaluate(VAL, detections, classes, iou_type="bbox", image_ids=images, max_detections=20)
    assert few.loc["bbox", "AR"] < both[0].loc["bbox", "AR"]


@pytest.mark.long
def test_fixed_ap_takes_the_best_of_each_class_over_the_dataset(classes, images, detections, monkeypatch):
    monkeypatch.setattr("fuse.evaluation.metrics.FIXED_AP_DETECTIONS_PER_CLASS", 3)
    kept = detections.top_per_class(3)
    assert len(kept) < len(detections)
    fixed = evaluate(VAL, detections, classes, iou_type="bbox", image_ids=images, fixed_ap=True)
    plain = evaluate(VAL, kept, classes, iou_type="bbox", image_ids=images, max_detections=10**6)
    pd.testing.assert_frame_equal(fixed, plain)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["native", "hotcoco", "lvis"])
def test_input_is_left_as_it_was(engine, classes, images, detections):
    content = json.loads(VAL.read_text())
    before, rle = json.dumps(content), copy.deepcopy(detections.rles)
    root = logging.getLogger().handlers[:], logging.getLogger().level
    few = detections.take(np.isin(detections.image_ids, images[:3]))
    evaluate(content, few, classes, image_ids=images[:3], engine=engine)
    assert json.dumps(content) == before and detections.rles == rle
    assert (logging.getLogger().handlers, logging.getLogger().level) == root
    assert not hasattr(np, "float")


def gt_as_detections(content: dict) -> Detections:
    box = np.array([a["bbox"] for a in content["annotations"]], np.float32)
    box[:, 2:] += box[:, :2]
    size = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    rle = [hotcoco.mask.frPyObjects(a["segmentation"], *size[a["image_id"]])[0] for a in content["annotations"]]
    return Detections(
        np.array([a["image_id"] for a in content["annotations"]]),
        np.array([a["category_id"] for a in content["annotations"]]),
        np.ones(len(box), np.float32),
        box,
        [{"size": list(r["size"]), "counts": r["counts"].decode()} for r in rle],
    )


@pytest.mark.parametrize("engine", ["native", "hotcoco", "lvis"])
def test_ground_truth_scores_100_though_its_first_annotation_has_id_0(engine):
    content = annotations()
    assert content["annotations"][0]["id"] == 0
    result = evaluate(content, gt_as_detections(content), CLASSES, engine=engine)
    columns = ["AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP", "bAP", "APr", "APc", "APf", "AP50", "AP75", "AR"]
    np.testing.assert_allclose(result[columns], 100)
    assert result["AP[1000,-)"].isna().all()  # class 20 is never there
    assert result.attrs["evaluated"] == {
        "AP(0,10)": 2, "AP[10,100)": 1, "AP[100,1000)": 1, "AP[1000,-)": 0, "AP": 4,
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["native", "hotcoco", "lvis"])
@pytest.mark.parametrize("rle", [[], None])
def test_no_detections_score_0(engine, rle):
    empty = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), rle)
    result = evaluate(annotations(), empty, CLASSES, engine=engine)
    assert (result["AP"] == 0).all() and result["AP[1000,-)"].isna().all()


def test_federated_annotations():
    """A false positive counts where its class is annotated as absent, not where its class is not annotated."""
    content = annotations(1)
    present = {a["category_id"] for a in content["annotations"]}
    unknown = next(i for i in CLASSES["category_id"] if i not in present and i != 20)
    gt = gt_as_detections(content)

    def with_false_positive(category_id):
        extra = gt.take(np.array([0]))
        return Detections(
            np.append(gt.image_ids, extra.image_ids),
            np.append(gt.category_ids, category_id),
            np.append(gt.scores, np.float32(1)),
            np.concatenate([gt.boxes, extra.boxes]),
            gt.rles + extra.rles,
        )

    assert evaluate(content, with_false_positive(unknown), CLASSES).loc["segm", "AP"] == pytest.approx(100)
    content["annotations"].append({**content["annotations"][0], "id": 99, "category_id": 20, "bbox": [0, 0, 3, 3]})
    content["annotations"][-1]["segmentation"] = [[0, 0, 3, 0, 3, 3, 0, 3]]
    wrong = per_class_ap(content, with_false_positive(20), CLASSES)
    assert wrong.set_index("category_id").loc[20, "AP"] == 0


def test_per_class_table_and_its_means(classes, images, detections):
    table = per_class_ap(VAL, detections, classes, iou_type="bbox", image_ids=images)
    result = evaluate(VAL, detections, classes, iou_type="bbox", image_ids=images)
    assert len(table) == 1230 and table.index.equals(classes.index)
    seen = {a["category_id"] for a in load_annotations(VAL, images)["annotations"]}
    assert set(table["category_id"][table["AP"].notna()]) == seen
    assert table["AP"].mean() == pytest.approx(result.loc["bbox", "AP"])
    in_bin = table[(table["instance_count"] >= 10) & (table["instance_count"] < 100)]
    assert in_bin["AP"].mean() == pytest.approx(result.loc["bbox", "AP[10,100)"])
    bins = ["AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP[1000,-)"]
    assert result.loc["bbox", bins].mean() == pytest.approx(result.loc["bbox", "bAP"])
    assert sum(evaluated_classes(table).values()) == 2 * len(seen)


def test_class_order_does_not_matter(classes, images, detections):
    shuffled = classes.sample(frac=1, random_state=0)
    options = {"iou_type": "bbox", "image_ids": images}
    pd.testing.assert_frame_equal(
        evaluate(VAL, detections, shuffled, **options), evaluate(VAL, detections, classes, **options)
    )


def test_bins_are_a_parameter_and_frequency_is_a_tag_of_its_own():
    table = pd.DataFrame({"instance_count": [3, 50, 5000], "frequency": list("fcr"), "AP": [10.0, 20.0, np.nan]})
    table[["AP50", "AP75", "AR"]] = 0.0
    result = summarize(table, (0, 5, float("inf")))
    assert result["AP(0,5)"] == 10 and result["AP[5,-)"] == 20 and result["AP"] == 15 and result["bAP"] == 15
    assert result["APf"] == 10 and np.isnan(result["APr"])


def test_bootstrap_intervals_contain_the_mean_and_shrink():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"instance_count": [5] * 10 + [50] * 300, "AP": rng.uniform(0, 100, 310)})
    spans = bootstrap_intervals(table)
    assert spans.loc["AP(0,10)"].diff().iloc[1] > 3 * spans.loc["AP[10,100)"].diff().iloc[1]
    assert spans.loc["AP", "low"] < table["AP"].mean() < spans.loc["AP", "high"]
    assert spans.loc["AP[1000,-)"].isna().all()
    pd.testing.assert_frame_equal(spans, bootstrap_intervals(table))


def changed(**change):
    return {**annotations(), **change}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "annotations: not an LVIS or COCO annotation file: .*missing required field `categories`"),
        (changed(images=[{"height": 5, "width": 5}]), r"missing required field `id` - at `\$.images\[0\]`"),
        (
            changed(categories=[*annotations()["categories"], {"id": 99}]),
            "annotations have 6 categories, the class table 5; 1 are",
        ),
    ],
)
def test_annotations_that_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        evaluate(content, gt_as_detections(annotations()), CLASSES)


def mask(counts, size=(48, 64)):
    return {"size": list(size), "counts": counts}


NOT_POLYGONS = "is not a list of polygons of three or more points"


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("annotations", {"id": 5}, "annotations: id 5 occurs more than once"),
        ("images", {"id": 17}, "images: id 17 occurs more than once"),
        ("categories", {"id": 9}, "categories: id 9 occurs more than once"),
        ("annotations", {"image_id": 8}, "annotation 4: image_id 8 is not in the file"),
        ("annotations", {"category_id": 5}, "annotation 4: category_id 5 is not in the file"),
        ("annotations", {"bbox": [9, np.nan, 3, 4]}, "annotation 4: bbox .*nan.* is not finite"),
        ("annotations", {"area": -1}, "annotation 4: area is -1.0, expected at least 0"),
        ("annotations", {"segmentation": []}, "1 of 18 annotations have no segmentation, such as one of category"),
        ("annotations", {"segmentation": [[]]}, "1 of 18 annotations have no segmentation"),
        ("annotations", {"segmentation": [[1, 2, 3, 4]]}, "1 of 18 annotations have no segmentation"),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, NOT_POLYGONS),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5, np.nan]]}, NOT_POLYGONS),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5, "six"]]}, NOT_POLYGONS),
        ("annotations", {"segmentation": [1, 2, 3, 4, 5, 6]}, NOT_POLYGONS),
        ("annotations", {"segmentation": mask("!!")}, "annotation 4: segmentation .* is not a run-length encoding"),
        ("annotations", {"segmentation": {"size": [48, 64]}}, "annotation 4: .* is not a run-length encoding"),
        ("annotations", {"segmentation": mask([9, 9, 4000])}, "annotation 4: .* is not a run-length encoding"),
        (
            "annotations",
            {"segmentation": mask([9, 9, 2], (4, 5))},
            "another size than image 17, which is 48 high and 64",
        ),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_entries_that_are_refused(key, change, message, as_file, tmp_path):
    content = annotations()
    content[key][{"annotations": 4, "images": 2, "categories": 1}[key]].update(change)
    source, name = content, "annotations"
    if as_file:
        source = tmp_path / "val.json"
        source.write_text(json.dumps(content))
        name = str(source)
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        evaluate(source, gt_as_detections(annotations()), CLASSES)


def test_masks_as_run_lengths_score_as_their_polygons_do():
    content, found = annotations(), gt_as_detections(annotations())
    for annotation, rle in zip(content["annotations"], found.rles, strict=True):
        annotation["segmentation"] = rle
    assert evaluate(content, found, CLASSES, iou_type="segm").loc["segm", "AP"] == pytest.approx(100)


def test_annotations_without_area_are_left_out_whatever_their_shape():
    content = annotations()
    extra = {**content["annotations"][0], "id": 99, "bbox": [5, 5, 0, 0], "area": 0, "segmentation": [["?"] * 6]}
    content["annotations"].append(extra)
    assert len(load_annotations(content)["annotations"]) == 18


def test_loaded_annotations_are_restricted_without_another_check():
    loaded = load_annotations(annotations())
    loaded["annotations"][-1]["bbox"] = [9, 9, -3, 4]
    assert load_annotations(loaded) is loaded
    part = load_annotations(loaded, [7, 17])
    assert [i["id"] for i in part["images"]] == [7, 17] and [a["id"] for a in part["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_annotation_files_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"v\.json: no such annotation file"):
        load_annotations(tmp_path / "v.json")
    (tmp_path / "v.json").write_text("[1")
    with pytest.raises(ValueError, match=r"v\.json: not an LVIS or COCO annotation file"):
        load_annotations(tmp_path / "v.json")
    with pytest.raises(ValueError, match="has no image 8"):
        load_annotations(annotations(), [7, 8])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_ids", 8, "detections of image_id 8, which the annotations do not have"),
        ("category_ids", 5, "detections of category_id 5"),
        ("scores", np.nan, "scores that are not finite"),
    ],
)
def test_detections_that_are_refused(field, value, message):
    found = gt_as_detections(annotations())
    getattr(found, field)[3] = value
    with pytest.raises(ValueError, match=message):
        evaluate(annotations(), found, CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_type": "keypoints"}, "iou_type is 'keypoints'"),
        ({"engine": "coco"}, "engine is 'coco', expected 'native' or 'hotcoco' or 'lvis'"),
        ({"bins": (10,)}, "bins are"),
        ({"max_detections": -1}, "max_detections is -1, expected at least 1"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(annotations(), gt_as_detections(annotations()), CLASSES, **options)


def test_masks_of_another_size_are_refused():
    found = gt_as_detections(annotations())
    found.rles[3] = {"size": [24, 32], "counts": "PPYo1"}
    with pytest.raises(ValueError, match=r"detections of image 17: mask size \[24, 32\], expected \[48, 64\]"):
        evaluate(annotations(), found, CLASSES, iou_type="segm")


IMPORT_LVIS = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {refused}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Refuse())
from fuse.evaluation.engines import import_lvis
lvis = import_lvis()
assert lvis.LVISEval and not hasattr(lvis, "LVISVis") and "lvis.vis" not in sys.modules
"""


@pytest.mark.process
def test_the_official_package_is_imported_without_its_visualization():
    code = IMPORT_LVIS.format(refused={"cv2", "matplotlib"})
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.process
def test_a_missing_official_package_is_named_with_its_extra():
    code = IMPORT_LVIS.format(refused={"lvis"})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "engine 'lvis': No module named 'lvis'; pip install 'tailcal[lvis]'" in done.stderr


def test_mask_ap_needs_masks():
    found = gt_as_detections(annotations())
    without = Detections(found.image_ids, found.category_ids, found.scores, found.boxes)
    with pytest.raises(ValueError, match="detections have no masks"):
        evaluate(annotations(), without, CLASSES, iou_type="segm")
    table = evaluate(annotations(), without, CLASSES)
    assert list(table.index) == ["bbox"] and table.loc["bbox", "AP"] == pytest.approx(100)
    assert list(evaluate(annotations(), found, CLASSES).index) == ["segm", "bbox"]
