"""Annotation files: real LVIS, and every way a file can be wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from extract.data.annotations import AnnotationError, read_annotations

LVIS = Path(__file__).parent / "data" / "lvis_v0.5_val_100.json"
GOOD = {
    "images": [
        {"id": 7, "height": 50, "width": 100, "file_name": "seven.png"},
        {"id": 3, "height": 60, "width": 80, "coco_url": "http://images/train2017/000000000003.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 20, "bbox": [10, 5, 20, 30]},
        {"id": 2, "image_id": 3, "category_id": 4, "bbox": [0, 0, 80.5, 60]},
        {"id": 5, "image_id": 7, "category_id": 4, "bbox": [1.5, 2.5, 3, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 20, "name": "owl"}, {"id": 4, "name": "cat", "frequency": "f"}],
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_images_and_classes_in_ascending_order(tmp_path):
    a = read_annotations(write(tmp_path, GOOD))
    assert a.image_ids.tolist() == [3, 7]
    assert a.classes["category_id"].tolist() == [4, 20]
    assert a.classes["frequency"].tolist() == ["f", "r"]
    assert a.classes["instance_count"].tolist() == [2, 1]
    assert a.ids.tolist() == [2, 1, 5] and a.labels.tolist() == [0, 1, 0] and a.crowd.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(a.boxes[a.image_slice(1)], np.float32([[10, 5, 30, 35], [1.5, 2.5, 4.5, 6.5]]))
    assert a.boxes[0].tolist() == [0, 0, 80, 60], "half a pixel outside is clipped"


def test_finds_lvis_v1_images_by_their_address(tmp_path):
    a = read_annotations(write(tmp_path, GOOD))
    assert a.file_names[0] == ("train2017/000000000003.jpg", "000000000003.jpg", "0000000003.jpg"[-16:])[:2]
    assert a.file_names[1][0] == "seven.png"


def test_real_lvis():
    a = read_annotations(LVIS)
    content = json.loads(LVIS.read_text())
    assert len(a.image_ids) == 100 and len(a.ids) == 977 and len(a.classes) == 1230
    assert a.classes["instance_count"].sum() == 977
    assert set(a.classes["frequency"]) == set("rcf")
    assert "000000006460.jpg" in a.file_names[0], "COCO 2017 names have no COCO_val2014_ prefix"
    boxes = {x["id"]: x["bbox"] for x in content["annotations"]}
    x, y, w, h = boxes[int(a.ids[5])]
    np.testing.assert_allclose(a.boxes[5], [x, y, x + w, y + h], atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 1: category_id 99 is not in the file"),
        (lambda c: c["annotations"][0].update(image_id=99), "annotation 1: image_id 99 is not in the file"),
        (lambda c: c["annotations"][0].update(bbox=[10, 5, 20]), r"bbox is \[10, 5, 20\], expected four numbers"),
        (lambda c: c["annotations"][1].update(id=1), "annotations: id 1 occurs more than once"),
        (lambda c: c["images"].append(c["images"][0]), "images: id 7 occurs more than once"),
        (lambda c: c["categories"][1].pop("name"), "category 4: missing required field `name`"),
        (lambda c: c["categories"][1].update(frequency="x"), "frequency 'x', expected 'r', 'c' or 'f'"),
        (lambda c: c.update(images=[], annotations=[]), "images is empty"),
        (lambda c: c.pop("categories"), "missing required field `categories`"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path, change, message):
    content = copy.deepcopy(GOOD)
    change(content)
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(path)
    assert str(path) in str(error.value)


def test_not_json_and_not_there(tmp_path):
    with pytest.raises(AnnotationError, match="annotations.json: not an LVIS or COCO annotation file"):
        read_annotations(write(tmp_path, "{"))
    with pytest.raises(FileNotFoundError, match="nowhere.json: no such annotation file"):
        read_annotations(tmp_path / "nowhere.json")


def test_not_a_number_in_a_box(tmp_path):
    path = write(tmp_path, json.dumps(GOOD).replace("[10, 5, 20, 30]", "[10, 5, 1e999, 30]"))
    with pytest.raises(AnnotationError, match="annotation"):
        read_annotations(path)
