"""Files that exporters wrote (tests/data/exporters) are read to the objects that the exporters were given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from extract.data.annotations import read_annotations
from extract.data.image_files import base_name, find_image
from fuse.evaluation.dataset import load_annotations

FOLDER = Path(__file__).parent / "data" / "exporters"
EXPORTERS = sorted(json.loads((FOLDER / "index.json").read_text()))
NAMES = ("ant", "bee", "cat")
OBJECTS = {
    ("a.png", "ant", (8.0, 6.0, 48.0, 36.0)),
    ("a.png", "cat", (50.0, 20.0, 90.0, 60.0)),
    ("b.png", "bee", (10.5, 4.0, 30.0, 24.0)),
}
ROUNDED = {o for o in OBJECTS if o[1] != "bee"} | {("b.png", "bee", (10.0, 4.0, 30.0, 24.0))}
REPORTS = {
    "labelformat": ["3 of 3 annotations have no id and get one, such as annotation 1"],
    "label-studio-sdk": ["1 of 3 images have no size: it is read from their files, such as image 2"],
    "pylabel": [
        "4 of 4 annotations have numbers written as text, as floats or as true and false, such as iscrowd 0.0 of "
        "annotation 0",
        "1 of 4 annotations are the same again and are left out, such as annotation 0",
    ],
}


def test_every_file_has_its_exporter():
    assert {path.stem for path in FOLDER.glob("*.json")} - {"index"} == set(EXPORTERS) and len(EXPORTERS) >= 6


@pytest.mark.parametrize("name", EXPORTERS)
def test_extraction_and_evaluation_read_the_objects(tmp_path, caplog, name):
    expected = ROUNDED if name == "imantics" else OBJECTS
    for image in ("a.png", "b.png", "c.png"):
        PILImage.new("RGB", (96, 64)).save(tmp_path / image)
    path = FOLDER / f"{name}.json"
    a = read_annotations(path, images=tmp_path)
    files = [find_image(tmp_path, names).name for names in a.file_names]
    owner = np.repeat(np.arange(3), np.diff(a.offsets))
    names = a.classes["name"].tolist()
    boxes = map(tuple, a.boxes.tolist())
    assert {(files[i], names[k], box) for i, k, box in zip(owner, a.labels, boxes, strict=True)} == expected
    assert len(a.ids) == 3 and sorted(files) == ["a.png", "b.png", "c.png"] and sorted(names) == list(NAMES)
    assert a.heights.tolist() == [64] * 3 and a.widths.tolist() == [96] * 3 and not a.crowd.any() and not a.federated
    assert [r.getMessage() for r in caplog.records] == [f"{path}: {line}" for line in REPORTS.get(name, [])]

    dataset = load_annotations(path)
    files_of = {image["id"]: base_name(image["file_name"]) for image in dataset["images"]}
    names_of = {category["id"]: category["name"] for category in dataset["categories"]}
    found = set()
    for annotation in dataset["annotations"]:
        x, y, w, h = annotation["bbox"]
        found.add((files_of[annotation["image_id"]], names_of[annotation["category_id"]], (x, y, x + w, y + h)))
        assert annotation["area"] == pytest.approx(w * h) and annotation["iscrowd"] == 0
    assert found == expected and len(dataset["annotations"]) == 3 and not dataset.federated
