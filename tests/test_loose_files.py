"""Annotation files and results as tools write them, read by extraction and by evaluation."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import hotcoco
import numpy as np
import pytest
from PIL import Image as PILImage
from pycocotools import mask as coco_mask

from extract.data.annotations import Annotations, read_annotations
from extract.data.image_files import check_namesakes, find_image
from extract.data.images import decode_image
from extract.data.loose import identifier
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate
from tests.fuse_fixtures import CLASSES, SIZE
from tests.fuse_fixtures import annotations as fuse_annotations

GOOD = {
    "images": [
        {"id": 7, "height": 50, "width": 100, "file_name": "seven.png"},
        {"id": 3, "height": 60, "width": 80, "file_name": "three.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 20, "bbox": [10, 5, 20, 30], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 4, "bbox": [0, 0, 80, 60], "area": 4800, "iscrowd": 0},
        {"id": 5, "image_id": 7, "category_id": 4, "bbox": [1.5, 2.5, 3, 4], "area": 12, "iscrowd": 1},
    ],
    "categories": [{"id": 20, "name": "owl"}, {"id": 4, "name": "cat"}],
}
TRIANGLE = [[10, 5, 30, 5, 30, 35]]


def write(folder: Path, content: object) -> Path:
    path = folder / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(section: str, index: int | None = None, **fields: object) -> dict:
    """GOOD with other fields in one record of a section, or in all; a field of `...` is removed."""
    content = copy.deepcopy(GOOD)
    records = content[section] if index is None else [content[section][index]]
    for record in records:
        record.update({name: value(record[name]) if callable(value) else value for name, value in fields.items()})
        for name in [name for name, value in fields.items() if value is ...]:
            del record[name]
    return content


def assert_same(a: Annotations, b: Annotations) -> None:
    for name in ("image_ids", "heights", "widths", "ids", "labels", "boxes", "crowd", "exhaustive", "offsets"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert a.classes.equals(b.classes) and a.file_names == b.file_names and a.federated == b.federated


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


RESPELLED = {
    "ids as text": lambda: changed("annotations", category_id=str, image_id=lambda v: f"{v:08d}", id=str),
    "ids as floats": lambda: changed("annotations", category_id=float, image_id=float, id=float),
    "image ids as text": lambda: changed("images", id=str),
    "category ids as floats": lambda: changed("categories", id=float),
    "sizes as floats": lambda: changed("images", height=float, width=float),
    "sizes as text": lambda: changed("images", height=str, width=lambda v: f"{v}.0"),
    "boxes as text": lambda: changed("annotations", bbox=lambda v: list(map(str, v))),
    "iscrowd as floats": lambda: changed("annotations", iscrowd=float),
    "iscrowd as true and false": lambda: changed("annotations", iscrowd=bool),
    "iscrowd as text": lambda: changed("annotations", iscrowd=str),
}


@pytest.mark.parametrize("name", RESPELLED)
def test_numbers_in_other_spellings(tmp_path, caplog, name):
    expected = read_annotations(write(tmp_path, GOOD)), load_annotations(tmp_path / "a.json")
    path = write(tmp_path, RESPELLED[name]())
    assert_same(read_annotations(path), expected[0])
    (line,) = warnings_of(caplog)
    assert line.startswith(f"{path}: ") and " have numbers written as text, as floats or as true and false" in line
    assert load_annotations(path) == expected[1] and load_annotations(json.loads(path.read_text())) == expected[1]
    for read in (read_annotations, load_annotations):
        with pytest.raises(ValueError, match="true and false, such as .* of .*; --strict refuses this") as error:
            read(path, strict=True)
        assert str(error.value).startswith(line)


MISSING = {
    "iscrowd": lambda: changed("annotations", 0, iscrowd=...),
    "iscrowd null": lambda: changed("annotations", 0, iscrowd=None),
    "iscrowd NaN": lambda: changed("annotations", 0, iscrowd=float("nan")),
    "file_name null": lambda: changed("images", 0, coco_url=None, license=None),
    "LVIS lists null": lambda: changed("images", neg_category_ids=None, not_exhaustive_category_ids=float("nan")),
    "frequency null": lambda: changed("categories", frequency=None),
    "NaN in fields of the tool": lambda: changed("annotations", score=float("nan")),
    "segmentation null": lambda: changed("annotations", segmentation=None),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_values_stand_for_none(tmp_path, caplog, name):
    expected = read_annotations(write(tmp_path, GOOD)), load_annotations(tmp_path / "a.json")
    path = write(tmp_path, MISSING[name]())
    assert_same(read_annotations(path, strict=True), expected[0])
    assert load_annotations(path, strict=True) == expected[1]
    assert warnings_of(caplog) == []


def test_annotations_without_ids_get_the_numbers_that_follow(tmp_path, caplog):
    content = changed("annotations", 0, id=...)
    del content["annotations"][1]["id"]
    path = write(tmp_path, content)
    assert read_annotations(path).ids.tolist() == [7, 6, 5]
    assert [a["bbox"] for a in load_annotations(path)["annotations"]] == [a["bbox"] for a in GOOD["annotations"]]
    line = f"{path}: 2 of 3 annotations have no id and get one, such as annotation 6"
    assert warnings_of(caplog)[0] == line


TEXT_IDS = {7: "img_0007", 3: "a/b.png"}


def with_text_ids(**records: object) -> dict:
    content = changed("images", id=TEXT_IDS.get)
    for annotation in content["annotations"]:
        annotation["image_id"] = TEXT_IDS[annotation["image_id"]]
    return content | records


def test_ids_of_images_may_be_any_text(tmp_path, caplog):
    path = write(tmp_path, with_text_ids())
    a, dataset = read_annotations(path), load_annotations(path)
    assert dict(a.text_ids) == dataset.text_ids == {identifier(text): text for text in TEXT_IDS.values()}
    assert [a.text_ids[i] for i in a.image_ids.tolist()] == sorted(TEXT_IDS.values(), key=identifier)
    boxes = {dataset.text_ids[o["image_id"]]: o["bbox"] for o in dataset["annotations"][:2]}
    assert boxes == {"img_0007": [10, 5, 20, 30], "a/b.png": [0, 0, 80, 60]}
    change = "have text as id: a number made of it takes its place, but not in results"
    assert warnings_of(caplog) == [f"{path}: 2 of 2 images {change}, such as image img_0007"] * 2
    # Other files, and part of this one, have the same number of the same text.
    part = read_annotations(write(tmp_path, with_text_ids(annotations=[]) | {"images": with_text_ids()["images"][:1]}))
    assert part.image_ids.tolist() == [identifier("img_0007")] and load_annotations(dataset, part.image_ids)
    assert load_annotations(dataset, part.image_ids).text_ids == dataset.text_ids


def test_messages_show_ids_that_are_text(tmp_path, caplog):
    content = with_text_ids()
    content["images"][0]["height"] = None
    path = write(tmp_path, content)
    read_annotations(path)
    load_annotations(path)
    assert [line.rpartition(" ")[2] for line in warnings_of(caplog)] == ["img_0007"] * 4


def test_errors_show_ids_that_are_text(tmp_path):
    content = with_text_ids()
    content["annotations"][0] |= {"id": "a-1", "image_id": "img_9"}
    path = write(tmp_path, content)
    content["images"][1]["id"] = "img_0007"
    other = write(tmp_path, content).rename(tmp_path / "b.json")
    write(tmp_path, with_text_ids(annotations=content["annotations"]))
    for read in (read_annotations, load_annotations):
        with pytest.raises(ValueError, match="a.json: annotation a-1: image_id img_9 is not in the file"):
            read(path)
        with pytest.raises(ValueError, match="b.json: images: id img_0007 occurs more than once"):
            read(other)


def test_results_keep_ids_that_are_text(tmp_path, caplog):
    dataset = load_annotations(write(tmp_path, with_text_ids()))
    ids = np.array([identifier("img_0007"), identifier("a/b.png")])
    boxes = np.array([[10, 5, 30, 35], [0, 0, 80, 60]], np.float32)
    found = Detections(ids, np.array([20, 4]), np.array([0.5, 0.25], np.float32), boxes)
    found.to_json(tmp_path / "d.json", dataset.text_ids)
    assert [r["image_id"] for r in json.loads((tmp_path / "d.json").read_text())] == ["img_0007", "a/b.png"]
    caplog.clear()
    again = Detections.from_json(tmp_path / "d.json")
    np.testing.assert_array_equal(again.image_ids, ids)
    (line,) = warnings_of(caplog)
    assert "2 of 2 records have text as image_id, which is an image of that id, such as 'img_0007' of record 0" in line
    classes = read_annotations(tmp_path / "a.json").classes
    for engine in ("native", "hotcoco", "pycocotools"):
        assert evaluate(dataset, again, classes, engine=engine)["AP"].item() == pytest.approx(100)


def test_numbers_with_leading_zeros_are_written_as_they_were(tmp_path):
    a = read_annotations(write(tmp_path, changed("images", id="{:08d}".format)))
    assert dict(a.text_ids) == {3: "00000003", 7: "00000007"}


@pytest.mark.parametrize("protocol", ["exhaustive", "federated"])
def test_ids_that_floats_cannot_hold_are_evaluated(tmp_path, protocol):
    content = json.loads(
        json.dumps(GOOD).replace('_id": ', '_id": 900719925474099').replace('{"id": ', '{"id": 900719925474099')
    )
    for image in content["images"]:
        image["neg_category_ids"] = [9007199254740994]
    dataset = load_annotations(write(tmp_path, content))
    classes = read_annotations(tmp_path / "a.json").classes
    big = [a for a in content["annotations"] if not a["iscrowd"]]
    xywh = np.array([a["bbox"] for a in big], np.float32)
    columns = (np.array([a[key] for a in big], np.int64) for key in ("image_id", "category_id"))
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    found = Detections(*columns, np.ones(len(big), np.float32), boxes)
    expected = evaluate(
        dataset, found, classes, protocol=protocol, engine={"exhaustive": "pycocotools"}.get(protocol, "lvis")
    )
    assert (
        evaluate(dataset, found, classes, protocol=protocol)["AP"].item() == expected["AP"].item() == pytest.approx(100)
    )


def test_results_to_be_changed_are_refused_with_strict(tmp_path):
    rle = coco_mask.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))
    record = {"image_id": 7, "category_id": 4, "score": 0.5, "segmentation": {**rle, "counts": rle["counts"].decode()}}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert Detections.from_json(tmp_path / "a.json").boxes.tolist() == [[0, 0, 4, 4]]
    with pytest.raises(ValueError, match="1 of 1 records have no bbox .*, such as record 0; --strict refuses this"):
        Detections.from_json(tmp_path / "a.json", strict=True)


def test_a_byte_order_mark_and_other_encodings_are_read(tmp_path):
    expected = read_annotations(write(tmp_path, GOOD))
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text(json.dumps(GOOD), encoding=encoding)
        assert_same(read_annotations(tmp_path / "a.json"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("annotations", 0, category_id="cat"), "annotation 1: category_id is 'cat', expected a whole number"),
        (changed("annotations", 0, image_id=7.5), "annotation 1: image_id is 7.5, expected a whole number"),
        (changed("annotations", 0, image_id=True), "annotation 1: image_id is True, expected a whole number"),
        (changed("annotations", 0, iscrowd=2), "annotation 1: iscrowd is 2, expected 0 or 1"),
        (changed("images", 0, id=...), "Object missing required field `id` - at `..images.0.`"),
        (changed("annotations", 0, id=10**30), "annotation 1.*: id is 1.*, expected a whole number of 64 bits"),
        (changed("annotations", 0, category_id=None), "missing required field `category_id`"),
        (changed("annotations", 0, bbox=None), "annotation 1: bbox is missing, and there is no segmentation"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotation 1: bbox is \[1, 2, 3\], expected four numbers"),
        (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "annotation 1: bbox .* is not finite"),
        (changed("annotations", 0, bbox=[1e300, 2, 3, 4]), "annotation 1: bbox .* is not finite"),
        (changed("images", 0, height=-5), "image 7: height is -5, expected a number of pixels"),
        (changed("images", 0, width=100.5), "image 7: width is 100.5, expected a whole number"),
        (changed("images", 0, id="seven"), "annotation 1: image_id 7 is not in the file"),
        (changed("categories", 0, id="owl"), "category owl: id is 'owl', expected a whole number"),
        (changed("images", 0, id=[7]), r"image .7.: id is .7., expected a whole number"),
        (changed("images", 0, neg_category_ids=["a"]), "neg_category_ids is .'a'., expected a list of whole numbers"),
        ({**GOOD, "categories": None}, "missing required field `categories`"),
        ([{"image_id": 1, "category_id": 2, "score": 1, "bbox": [0, 0, 1, 1]}], "Expected `object`, got `array`"),
        ({**GOOD, "images": {"7": {}}}, r"Expected `array`, got `object` - at `\$.images`"),
        ({**GOOD, "images": [1]}, r"Expected `object`, got `int` - at `\$.images\[0\]`"),
        ("[" * 100_000, "not an LVIS or COCO annotation file: .*recursion"),
        ("{", "not an LVIS or COCO annotation file: "),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, content, message):
    path = write(tmp_path, content)
    for read in (read_annotations, load_annotations):
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_boxes_without_area_are_left_out_and_boxes_over_the_edge_are_clipped(tmp_path, caplog):
    content = copy.deepcopy(GOOD)
    extra = {"image_id": 7, "category_id": 20, "area": 1}
    for i, bbox in enumerate(([30.5, 41.2, 7.9, 0], [9, 9, -3, 4], [5, 5, 1e-9, 3], [90, -9, 20, 30], [200, 5, 9, 9])):
        content["annotations"].append({**extra, "id": 10 + i, "bbox": bbox})
    content["annotations"].append({**extra, "id": 20, "bbox": [100.2, 5, 0.5, 9]})
    path = write(tmp_path, content)
    a = read_annotations(path)
    assert a.ids.tolist() == [2, 1, 5, 13] and a.boxes[3].tolist() == [90, 0, 100, 21]
    assert a.classes["instance_count"].tolist() == [2, 2] and np.diff(a.offsets).tolist() == [1, 3]
    assert warnings_of(caplog) == [
        f"{path}: 3 of 9 boxes have no area and are left out, such as annotation 10",
        f"{path}: 2 of 9 boxes lie outside their image and are left out, such as annotation 14",
        f"{path}: 1 of 9 boxes reach over the edge of their image and are clipped, such as annotation 13",
    ]
    with pytest.raises(ValueError, match="3 of 9 boxes have no area and are left out, such as annotation 10"):
        read_annotations(path, strict=True)


def test_evaluation_keeps_boxes_as_the_official_code_does(tmp_path, caplog):
    content = changed("annotations", 0, bbox=[90, -9, 20, 30])
    content["annotations"][1]["bbox"] = [0, 0, 80, 0]
    dataset = load_annotations(write(tmp_path, content))
    assert [a["bbox"] for a in dataset["annotations"]] == [[90, -9, 20, 30], [0, 0, 80, 0], [1.5, 2.5, 3, 4]]
    (line,) = warnings_of(caplog)
    assert "1 of 3 boxes have no area: no detection can match them, such as annotation 2" in line


@pytest.mark.parametrize("size", [None, 0, "", "0", float("nan"), ...])
def test_sizes_that_the_file_lacks_are_read_from_the_images(tmp_path, caplog, size):
    path = write(tmp_path, changed("images", 1, height=size, width=size))
    exif = PILImage.Exif()
    exif[0x0112] = 6  # turned by 90°
    PILImage.new("RGB", (60, 80)).save(tmp_path / "three.png", exif=exif)
    a = read_annotations(path, images=tmp_path)
    assert (a.heights[0], a.widths[0]) == decode_image(tmp_path / "three.png").shape[:2] == (60, 80)
    assert_same(a, read_annotations(write(tmp_path, GOOD)))
    assert warnings_of(caplog)[-1] == (
        f"{path}: 1 of 2 images have no size: it is read from their files, such as image 3"
    )
    (tmp_path / "three.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no three\.png"):
        read_annotations(write(tmp_path, changed("images", 1, height=size)), images=tmp_path)


def test_without_images_boxes_of_unknown_sizes_are_not_clipped(tmp_path, caplog):
    content = changed("images", height=None, width=None)
    content["annotations"][0]["bbox"] = [-4, 5, 400, 30]
    path = write(tmp_path, content)
    a = read_annotations(path)
    assert a.boxes[a.ids == 1].tolist() == [[0, 5, 396, 35]] and not a.heights.any()
    assert f"{path}: 2 of 2 images have no size: their boxes are not clipped, such as image 3" in warnings_of(caplog)
    dataset = load_annotations(path, sizes={7: (50, 100)})
    assert [(i["height"], i["width"]) for i in dataset["images"]] == [(50, 100), (0, 0)]
    assert "1 of 2 images have no size: there is no mask AP of them, such as image 3" in warnings_of(caplog)[-1]


def test_a_missing_box_is_that_of_the_segmentation(tmp_path, caplog):
    rle = {"size": [50, 100], "counts": [5, 10, 4985]}
    for bbox in (..., None, []):
        content = changed("annotations", 0, segmentation=TRIANGLE, bbox=bbox)
        content["annotations"][2] |= {"segmentation": rle, "bbox": bbox if bbox is not ... else None}
        a = read_annotations(write(tmp_path, content))
        assert a.boxes[a.ids == 1].tolist() == [[10, 5, 30, 35]] and a.boxes[a.ids == 5].tolist() == [[0, 5, 1, 15]]
        assert load_annotations(tmp_path / "a.json")["annotations"][0]["bbox"] == [10, 5, 20, 30]
    assert "2 of 3 annotations have no bbox and get that of their segmentation, such as annotation 1" in caplog.text


def test_areas_that_the_file_lacks_are_computed_as_pycocotools_does(tmp_path, caplog):
    polygon = [[10, 5, 30, 5, 30, 35], [40, 5, 50, 5, 50, 20]]
    runs = {"size": [60, 80], "counts": [5, 10, 4785]}
    for area in (..., None, float("nan")):
        content = changed("annotations", area=area)
        content["annotations"][0]["segmentation"], content["annotations"][1]["segmentation"] = polygon, runs
        path = write(tmp_path, content)
        areas = [a["area"] for a in load_annotations(path)["annotations"]]
        assert areas == [coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygon, 50, 100))), 10, 12]
        line = "3 of 3 annotations have no field area, which is computed from the segmentation or the box"
        assert warnings_of(caplog)[-1] == f"{path}: {line}, such as annotation 1"
        read_annotations(path, strict=True)  # extraction does not use areas


def test_names_and_files_that_occur_twice(tmp_path, caplog):
    content = copy.deepcopy(GOOD)
    content["images"].append({**content["images"][0], "id": 9})
    content["categories"].append({"id": 30, "name": "owl"})
    path = write(tmp_path, content)
    a = read_annotations(path)
    assert a.image_ids.tolist() == [3, 7, 9] and a.file_names[1] == a.file_names[2] == ("seven.png",)
    assert warnings_of(caplog) == [
        f"{path}: 1 of 3 images have the file of another image, such as images 7 and 9 (seven.png)",
        f"{path}: 1 of 3 categories have the name of another one, so that names do not tell them apart, "
        "such as categories 20 and 30 ('owl')",
    ]


def test_an_annotation_that_is_there_twice_counts_once(tmp_path, caplog):
    expected = read_annotations(write(tmp_path, GOOD)), load_annotations(tmp_path / "a.json")
    content = copy.deepcopy(GOOD)
    content["annotations"] += content["annotations"][:2]
    path = write(tmp_path, content)
    assert_same(read_annotations(path), expected[0])
    assert load_annotations(path) == expected[1]
    line = f"{path}: 2 of 5 annotations are the same again and are left out, such as annotation 1"
    assert warnings_of(caplog) == [line, line]


def test_files_without_annotations_are_read(tmp_path, caplog):
    for nothing in (..., None, []):
        content = {k: v for k, v in {**GOOD, "annotations": nothing}.items() if v is not ...}
        a, dataset = read_annotations(write(tmp_path, content)), load_annotations(tmp_path / "a.json")
        assert len(a.ids) == 0 and a.offsets.tolist() == [0, 0, 0] and a.classes["instance_count"].sum() == 0
        assert len(dataset["images"]) == 2 and dataset["annotations"] == []
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("federated", [{"neg_category_ids": [4]}, {"not_exhaustive_category_ids": []}])
def test_lvis_fields_of_some_images_make_a_federated_dataset(tmp_path, federated):
    path = write(tmp_path, changed("images", 0, **federated))
    a, dataset = read_annotations(path), load_annotations(path)
    assert a.federated and dataset.federated and load_annotations(dataset, [3]).federated
    assert dataset["images"][1]["neg_category_ids"] == dataset["images"][1]["not_exhaustive_category_ids"] == []
    path = write(tmp_path, GOOD)
    assert not read_annotations(path).federated and not load_annotations(path).federated


def test_lists_of_categories_keep_those_of_the_file(tmp_path, caplog):
    dataset = load_annotations(write(tmp_path, changed("images", 0, neg_category_ids=[4, 99])))
    assert dataset["images"][0]["neg_category_ids"] == [4]
    assert "1 of 2 images have neg_category_ids that are no categories of the file and are left out" in caplog.text
    assert "such as 99 of image 7" in caplog.text


# Where images are.


def named(*names: str) -> dict:
    images = [{"id": i, "height": 8, "width": 8, "file_name": name} for i, name in enumerate(names)]
    return {"images": images, "categories": [{"id": 1, "name": "owl"}]}


def put(folder: Path, name: str, colour: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", (8, 8), colour).save(folder / name)


@pytest.mark.parametrize("name", ["images\\0.png", "C:\\Users\\me\\images\\0.png", "http://host/images/0.png", "0.png"])
def test_names_with_other_folders(tmp_path, name):
    put(tmp_path, "0.png", 1)
    (names,) = read_annotations(write(tmp_path, named(name))).file_names
    assert find_image(tmp_path, names) == tmp_path / "0.png"


def test_windows_paths_are_paths(tmp_path):
    put(tmp_path, "images/0.png", 1)
    put(tmp_path, "others/0.png", 2)
    names = read_annotations(write(tmp_path, named("images\\0.png", "others\\0.png"))).file_names
    assert [find_image(tmp_path, own).parent.name for own in names] == ["images", "others"]


def test_a_name_in_two_folders_never_gives_the_other_image(tmp_path):
    put(tmp_path, "cam1/0.png", 1)
    put(tmp_path, "cam2/0.png", 2)
    a = read_annotations(write(tmp_path, named("cam1/0.png", "cam2/0.png", "cam2/1.png")))
    assert [find_image(tmp_path, own).parent.name for own in a.file_names[:2]] == ["cam1", "cam2"]
    check_namesakes(tmp_path, a.image_ids, a.file_names, [0, 1])
    for own in a.file_names[:2]:
        with pytest.raises(FileNotFoundError, match=r"cam1: has no cam\d/0\.png"):
            find_image(tmp_path / "cam1", own)
    message = r"cam1: has no cam2/0.png; 0.png may be of image 1 or of image 0 \(cam1/0.png\): give the folder"
    with pytest.raises(FileNotFoundError, match=message):
        check_namesakes(tmp_path / "cam1", a.image_ids, a.file_names, [1])
    check_namesakes(tmp_path / "cam1", a.image_ids, a.file_names, [2])  # its name is its own
    put(tmp_path, "cam1/1.png", 3)
    assert find_image(tmp_path / "cam1", a.file_names[2]) == tmp_path / "cam1" / "1.png"


def test_a_number_in_a_name_is_coco_s_only_in_coco_s_names(tmp_path):
    put(tmp_path, "000000000042.jpg", 1)
    names = read_annotations(
        write(tmp_path, named("COCO_val2014_000000000042.jpg", "rear_000000000042.jpg"))
    ).file_names
    assert find_image(tmp_path, names[0]).name == "000000000042.jpg"
    with pytest.raises(FileNotFoundError):
        find_image(tmp_path, names[1])


# Masks and results.


def test_annotations_without_masks_have_box_ap_only():
    content = fuse_annotations()
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    found = detections_of(content)
    table = evaluate(content, found, CLASSES)
    assert list(table.index) == ["bbox"] and table.loc["bbox", "AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="annotations: 18 of 18 annotations have no segmentation, such as one of"):
        evaluate(content, found, CLASSES, iou_type="segm")


def test_mask_ap_needs_the_size_of_every_image():
    content = fuse_annotations()
    content["images"][2]["height"] = content["images"][2]["width"] = None
    with pytest.raises(ValueError, match="annotations: 1 of 6 images have no height and width, such as image 27"):
        evaluate(content, detections_of(content), CLASSES, iou_type="segm")
    assert evaluate(content, detections_of(content), CLASSES, iou_type="bbox").loc["bbox", "AP"] == pytest.approx(100)


def test_polygons_of_fewer_than_three_points_are_left_out(caplog):
    content = fuse_annotations()
    for annotation in content["annotations"]:
        annotation["segmentation"].insert(0, [1, 2, 3, 4])
    table = evaluate(content, detections_of(fuse_annotations()), CLASSES, iou_type="segm")
    assert table.loc["segm", "AP"] == pytest.approx(100)
    assert "18 of 18 annotations have polygons of fewer than three points, which are left out" in caplog.text


@pytest.mark.parametrize("form", ["compressed", "bytes", "uncompressed", "floats"])
def test_run_lengths_in_every_form(form):
    content, found = fuse_annotations(), detections_of(fuse_annotations())
    for annotation, rle in zip(content["annotations"], found.rles, strict=True):
        annotation["segmentation"] = in_form(rle, form)
    assert evaluate(content, found, CLASSES, iou_type="segm").loc["segm", "AP"] == pytest.approx(100)


def detections_of(content: dict) -> Detections:
    """The ground truth as detections with masks of its boxes."""
    box = np.array([a["bbox"] for a in content["annotations"]], np.float32)
    box[:, 2:] += box[:, :2]
    rles = []
    for x1, y1, x2, y2 in box.astype(int):
        pixels = np.zeros(SIZE, np.uint8, order="F")
        pixels[y1:y2, x1:x2] = 1
        rle = coco_mask.encode(pixels)
        rles.append({"size": list(rle["size"]), "counts": rle["counts"].decode()})
    ids = [np.array([a[name] for a in content["annotations"]]) for name in ("image_id", "category_id")]
    return Detections(*ids, np.ones(len(box), np.float32), box, rles)


def in_form(rle: dict, form: str) -> dict:
    """A mask in another form of RLE."""
    if form == "bytes":
        return {**rle, "counts": rle["counts"].encode()}
    if form == "compressed":
        return rle
    flat = np.concatenate([[0], hotcoco.mask.decode(rle).ravel(order="F")])
    runs = np.diff(np.append(np.flatnonzero(np.diff(flat)), len(flat) - 1), prepend=0)
    return {"size": rle["size"], "counts": (runs.astype(float) if form == "floats" else runs).tolist()}


def records_of(found: Detections) -> list[dict]:
    columns = found.image_ids.tolist(), found.category_ids.tolist(), found.scores.tolist(), found.xywh.tolist()
    names = ("image_id", "category_id", "score", "bbox", "segmentation")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, found.rles, strict=True)]


RESULTS = {
    "ids as text": lambda r: r | {"image_id": f"{r['image_id']:012d}", "category_id": str(r["category_id"])},
    "ids as floats": lambda r: r | {"image_id": float(r["image_id"]), "category_id": float(r["category_id"])},
    "numbers as text": lambda r: r | {"score": str(r["score"]), "bbox": list(map(str, r["bbox"]))},
    "no bbox": lambda r: {name: value for name, value in r.items() if name != "bbox"},
    "empty bbox": lambda r: r | {"bbox": []},
    "uncompressed": lambda r: r | {"segmentation": in_form(r["segmentation"], "uncompressed")},
    "uncompressed floats, no bbox": lambda r: r | {"bbox": None, "segmentation": in_form(r["segmentation"], "floats")},
    "fields of the tool": lambda r: r | {"area": float("nan"), "id": "x", "ignore": None},
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_as_tools_write_them(tmp_path, caplog, name):
    found = detections_of(fuse_annotations())
    (tmp_path / "d.json").write_text(json.dumps([RESULTS[name](r) for r in records_of(found)]))
    read = Detections.from_json(tmp_path / "d.json")
    for field in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(read, field), getattr(found, field), field)
    assert read.rles == found.rles
    lines = [f"{tmp_path}/d.json: 18 of 18 records have no bbox and get that of their mask, such as record 0"]
    assert warnings_of(caplog) == (lines if "bbox" in name else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7.5}, "record 0: image_id is 7.5, expected a whole number"),
        ({"score": None}, "missing required field `score`"),
        ({"bbox": None, "segmentation": None}, "missing required field `bbox`"),
        ({"segmentation": TRIANGLE}, "record 0: segmentation is .*, expected a run-length encoding"),
        ({"segmentation": {"size": [5, 5], "counts": [1, 200]}, "bbox": None}, "is no run-length encoding"),
        ({"segmentation": {"size": [5], "counts": "a"}, "bbox": None}, "is no run-length encoding"),
    ],
)
def test_results_that_cannot_be_meant(tmp_path, change, message):
    records = [{**records_of(detections_of(fuse_annotations()))[0], **change}]
    (tmp_path / "d.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=f"d.json: not a file of LVIS or COCO results: .*{message}") as error:
        Detections.from_json(tmp_path / "d.json")
    assert "\n" not in str(error.value)
