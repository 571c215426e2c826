"""Which output of a detector each category is: names that frameworks or users give, and what follows without names."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from extract.class_order import find_class_map
from extract.config import Config
from extract.data.annotations import read_annotations
from extract.detectors.base import OwnClasses


@dataclass
class FakeDetector:
    """The part of a detector that decides the order of its classes."""

    num_classes: int
    names: tuple[str, ...] | None = None
    framework: str = "detectron2"
    category_ids: tuple[int, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.description = {"name": "fake", "framework": self.framework}
        self.own_classes = self.names and OwnClasses(self.names, "its catalog", self.category_ids)


def write_file(folder: Path, *categories: tuple[int, str]) -> Path:
    """Writes annotations with categories listed in the given order, one box each."""
    first = categories[0][0]
    boxes = [{"id": 1, "image_id": 1, "category_id": first, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}]
    content = {
        "images": [{"id": 1, "width": 9, "height": 9, "file_name": "1.png"}],
        "annotations": boxes,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


ANTS = ((1, "ant"), (2, "bee"), (5, "cat"))


def outputs(detector: FakeDetector, path: Path, **options: Any) -> tuple[int, ...] | None:
    """The output of each class; None for the order of ids."""
    config = Config("fake", annotations=path, out="unused", split="train", **options)
    found = find_class_map(detector, read_annotations(path), config)
    return found and found.outputs


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("ant", "bee", "cat"), None),
        (("cat", "ant", "bee"), (1, 2, 0)),
        (("dog", "bee", "cat", "ant"), (3, 1, 2)),  # more classes than the file
        (("bee", "cat"), (-1, 0, 1)),  # fewer
        (("N/A", "bee", "ant", "N/A", "cat"), (2, 1, 4)),
        (("Bee", "CAT", "ant"), (2, 0, 1)),
    ],
)
def test_names_are_matched(tmp_path, names, expected):
    path = write_file(tmp_path, *ANTS)
    assert outputs(FakeDetector(len(names), names), path) == expected


def test_spelling_is_compared_without_case_and_punctuation(tmp_path, caplog):
    path = write_file(tmp_path, (1, "bat_(animal)"), (2, "bat_(sports_equipment)"), (3, "traffic light"))
    names = ("traffic_light", "Bat (animal)", "bat_(sports_equipment)")
    with caplog.at_level(logging.INFO):
        assert outputs(FakeDetector(3, names), path) == (1, 2, 0)
    assert "2 class names of its catalog are spelt otherwise in the annotation file, such as" in caplog.text


def test_what_has_no_counterpart_is_said_once(tmp_path, caplog):
    path = write_file(tmp_path, *ANTS)
    outputs(FakeDetector(4, ("ant", "bee", "cat", "dog")), path)
    assert [r.getMessage() for r in caplog.records] == [
        f"1 of 4 outputs are no category of {path} and never detected, such as output 3 'dog'"
    ]
    caplog.clear()
    outputs(FakeDetector(2, ("bee", "cat")), path)
    assert "lacks 1 of 3 categories" in caplog.text and "such as 1 'ant': never sampled" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ant", "bee", "cats"), "its catalog has 'cats' as class 2, .*a.json has no such category, .* 5 'cat'"),
        (("person", "dog", "cat"), "has 'person' as class 0, .* but category 1 'ant'"),
        (("ant", "ant", "cat"), "class name 'ant' occurs 2 times in its catalog and 1 times"),
        (("one", "two", "three"), "has 'one' as class 0"),
    ],
)
def test_contradictions_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        outputs(FakeDetector(3, names), write_file(tmp_path, *ANTS))


def test_categories_of_one_name(tmp_path):
    path = write_file(tmp_path, (0, "ant"), (1, "ant"), (2, "bee"))
    assert outputs(FakeDetector(3, ("ant", "ant", "bee")), path) is None, "the same list"
    with pytest.raises(ValueError, match="class name 'ant' occurs 1 times in its catalog and 2 times"):
        outputs(FakeDetector(2, ("bee", "ant")), path)


def test_names_and_ids_that_contradict_each_other(tmp_path):
    path = write_file(tmp_path, *ANTS)
    detector = FakeDetector(3, ("ant", "bee", "cat"), category_ids=(1, 5, 2))
    with pytest.raises(ValueError, match="its catalog: category 2 is 'cat' there and 'bee' in"):
        outputs(detector, path)
    assert outputs(detector, path, class_order="name") is None
    detector = FakeDetector(3, ("ant", "bee", "cat"), category_ids=(7, 8, 9))
    assert outputs(detector, path) is None, "the file numbers its categories otherwise"


def test_mmdetection_numbers_classes_as_the_file_lists_them(tmp_path, caplog):
    path = write_file(tmp_path, (5, "cat"), (1, "ant"), (2, "bee"))
    assert outputs(FakeDetector(3, ("cat", "ant", "bee"), "mmdet"), path) == (1, 2, 0)
    by_id = FakeDetector(3, ("ant", "bee", "cat"), "mmdet")
    with pytest.raises(ValueError, match="its catalog: class 0 is 'ant', but 'cat' is listed there in .*order file"):
        outputs(by_id, path)
    assert outputs(by_id, path, class_order="name") is None
    assert outputs(by_id, path, class_order="file") == (1, 2, 0)
    assert outputs(by_id, path, class_order="id") is None
    assert outputs(FakeDetector(2, ("cat", "bee"), "mmdet"), path) == (-1, 1, 0), "in the order of the file"
    larger = FakeDetector(4, ("ant", "bee", "cat", "dog"), "mmdet")
    assert outputs(larger, path) == (0, 1, 2), "was not trained on this file"
    caplog.clear()
    assert outputs(FakeDetector(3, None, "mmdet"), path) is None
    (record,) = caplog.records
    assert "taken as categories by ascending id" in record.getMessage() and record.levelname == "WARNING"


def test_without_names_ids_ascend(tmp_path, caplog):
    path = write_file(tmp_path, *ANTS)
    with caplog.at_level(logging.INFO):
        assert outputs(FakeDetector(3), path) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("nothing names the classes of detector fake: its outputs are taken as")
    assert outputs(FakeDetector(3), path, class_order="file") is None
    with pytest.raises(ValueError, match="class_order is name, but nothing names the classes of detector fake"):
        outputs(FakeDetector(3), path, class_order="name")
    for framework, number in (("detectron2", 5), ("torchvision", 4), ("torchvision", 2)):
        with pytest.raises(ValueError, match=f"has {number} classes besides background, .* has 3 categories, and"):
            outputs(FakeDetector(number, None, framework), path)


def test_torchvision_outputs_may_be_category_ids(tmp_path, caplog):
    path = write_file(tmp_path, *ANTS)
    with caplog.at_level(logging.INFO):
        assert outputs(FakeDetector(5, None, "torchvision"), path) == (0, 1, 4)
    assert "output i of detector fake is taken as category i, up to 5" in caplog.text
    assert outputs(FakeDetector(5, None, "torchvision"), path, class_order="id") == (0, 1, 4)
    with pytest.raises(ValueError, match="has 5 classes besides background"):
        outputs(FakeDetector(5, None, "torchvision"), path, class_order="file")


def test_names_are_given_in_a_file(tmp_path):
    path, names = write_file(tmp_path, *ANTS), tmp_path / "names.txt"
    for text in ("cat\nant\nbee\n", "__background__\r\ncat\r\nant\r\nbee", "\ufeffcat \nant\nbee\nbackground\n\n"):
        names.write_text(text, "utf-8", newline="")
        assert outputs(FakeDetector(3, ("ant", "bee", "cat")), path, classes=names) == (1, 2, 0)
    names.write_text("cat\n\nN/A\nant\n")
    assert outputs(FakeDetector(4), path, classes=names) == (3, -1, 0)
    with pytest.raises(ValueError, match="names.txt: has 4 names, one per line, detector fake has 2 classes"):
        outputs(FakeDetector(2), path, classes=names)
    names.write_text("cat\nant\nwasp\n")
    with pytest.raises(ValueError, match="names.txt has 'wasp' as class 2"):
        outputs(FakeDetector(3), path, classes=names)
    names.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="names.txt: not a text file of class names"):
        outputs(FakeDetector(3), path, classes=names)
    with pytest.raises(FileNotFoundError, match="no.txt: no such file of class names"):
        outputs(FakeDetector(3), path, classes=tmp_path / "no.txt")
    with pytest.raises(ValueError, match="class_order is id: --classes gives the order already"):
        outputs(FakeDetector(3), path, classes=names, class_order="id")


def test_a_description_without_a_framework(tmp_path):
    detector = replace(FakeDetector(3), framework="")
    assert outputs(detector, write_file(tmp_path, *ANTS)) is None
