"""Matching image files with an annotation file: by the names that extraction reads, and never by a guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extract.data.annotations import Annotations, read_annotations
from fuse.commands.image_files import ImageFile, find_images, match_annotations


def annotations(folder: Path, *images: dict) -> Annotations:
    """Annotations without objects; images of 30×20 unless they say otherwise."""
    images = tuple({"id": i + 1, "width": 30, "height": 20} | image for i, image in enumerate(images))
    path = folder / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "owl"}]}))
    return read_annotations(path)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def ids(images: list[ImageFile]) -> dict[str, int | None]:
    return {image.name: image.image_id for image in images}


def test_names_are_relative_to_the_folder(tmp_path):
    a = annotations(tmp_path, {"file_name": "x/1.jpg"}, {"file_name": "y/1.jpg"}, {"file_name": "2.jpg", "height": 50})
    folder = files(tmp_path / "images", "x/1.jpg", "y/1.jpg", "2.jpg", "z/3.jpg")
    matched = match_annotations(find_images([folder], tmp_path / "out"), a)
    assert ids(matched) == {"x/1.jpg": 1, "y/1.jpg": 2, "2.jpg": 3}
    assert [image.size for image in matched] == [(50, 30), (20, 30), (20, 30)]


def test_coco_urls(tmp_path):
    a = annotations(tmp_path, {"coco_url": "http://images/train2017/000000000009.jpg"})
    folder = files(tmp_path / "coco", "train2017/000000000009.jpg", "val2017/000000000010.jpg")
    for given in (folder, folder / "train2017", folder / "train2017" / "000000000009.jpg"):
        assert list(ids(match_annotations(find_images([given], tmp_path), a)).values()) == [1]


def test_files_match_by_the_end_of_their_path(tmp_path):
    a = annotations(tmp_path, {"file_name": "x/1.jpg"}, {"file_name": "y/1.jpg"})
    folder = files(tmp_path / "images", "y/1.jpg")
    assert ids(match_annotations(find_images([folder / "y" / "1.jpg"], tmp_path), a)) == {"1.jpg": 2}


def test_a_file_of_several_ids_is_each_of_them(tmp_path):
    a = annotations(tmp_path, {"file_name": "1.jpg"}, {"file_name": "1.jpg"})
    matched = match_annotations(find_images([files(tmp_path / "images", "1.jpg")], tmp_path), a)
    assert [image.image_id for image in matched] == [1, 2] and len({image.key for image in matched}) == 2


def test_the_likeliest_name_is_taken(tmp_path):
    a = annotations(tmp_path, {"file_name": "x/1.jpg"})
    folder = files(tmp_path / "images", "1.jpg", "x/1.jpg")
    for given in ([folder], [folder / "1.jpg", folder / "x" / "1.jpg"]):
        (image,) = match_annotations(find_images(given, tmp_path), a)
        assert image.path == folder / "x" / "1.jpg"
    files(tmp_path / "copy", "1.jpg")
    with pytest.raises(ValueError, match="images/1.jpg and .*copy/1.jpg: both are image 1 of .*a.json"):
        match_annotations(find_images([folder / "1.jpg", tmp_path / "copy"], tmp_path), a)


def test_links_are_followed_once(tmp_path):
    folder = files(tmp_path / "images", "1.jpg")
    (files(tmp_path / "elsewhere", "2.jpg") / "back").symlink_to(folder)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert list(ids(find_images([folder], tmp_path / "out"))) == ["1.jpg", "link/2.jpg"]


def test_no_match(tmp_path):
    a = annotations(tmp_path, {"file_name": "x/1.jpg"})
    folder = files(tmp_path / "images", "other.jpg")
    with pytest.raises(
        ValueError, match="a.json names none of the 1 images, such as other.jpg; it names such as x/1.jpg"
    ):
        match_annotations(find_images([folder], tmp_path), a)


def test_a_name_that_may_be_of_several_images_is_none(tmp_path):
    a = annotations(tmp_path, {"file_name": "x/1.jpg"}, {"file_name": "y/1.jpg"}, {"file_name": "2.jpg"})
    folder = files(tmp_path / "images", "1.jpg", "2.jpg")
    assert ids(match_annotations(find_images([folder], tmp_path), a)) == {"2.jpg": 3}
