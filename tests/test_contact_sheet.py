"""Contact sheets: which RoIs they show, where they cut them out, and what they write below."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

import extract
from extract.__main__ import main
from extract.crops import crop_around
from extract.objects import object_rois
from extract.roi_rows import choose_rows
from extract.sheet import GAP, LINE, MARGIN, PROPOSAL, TILE, _tiles
from tests.fuse_fixtures import CLASSES, SIZE, K, annotations, rois


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Annotations whose images are grey, with the objects of class `ant` green, and a cache of their proposals."""
    folder = tmp_path_factory.mktemp("browse")
    content = annotations()
    (folder / "images").mkdir()
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.png"
        pixels = np.full((*SIZE, 3), 128, np.uint8)
        for one in content["annotations"]:
            if one["image_id"] == image["id"] and one["category_id"] == 3:
                x, y, w, h = one["bbox"]
                pixels[y : y + h, x : x + w] = (0, 255, 0)
        PILImage.fromarray(pixels).save(folder / "images" / image["file_name"])
    (folder / "val.json").write_text(json.dumps(content))
    made = []
    for one in rois(content):
        ids = [a["id"] for a in content["annotations"] if a["image_id"] == one.image_id]
        gt_ids, labels, ious = np.repeat(ids, 6)[:, None], one.labels.copy(), one.ious.copy()
        labels[4::6], labels[5::6], ious[1::6], ious[2::6] = K, -1, 0.7, 0.8
        made.append(replace(one, gt_ids=gt_ids, labels=labels, ious=ious))
    extract.write_cache(folder / "val.zarr", made, CLASSES, split="val", level="embedding")
    return folder


@pytest.fixture(scope="module")
def cache(folder):
    return extract.open_cache(folder / "val.zarr")


def test_one_roi_of_each_object_of_highest_iou(cache, folder):
    labels = cache.read("labels")[:, 0]
    rows = object_rois(cache, labels, 0)
    content = json.loads((folder / "val.json").read_text())
    assert sorted(cache.read("gt_ids")[rows, 0].tolist()) == [a["id"] for a in content["annotations"]]
    assert (cache.read("ious")[rows, 0] == 1).all()


def test_rows(cache):
    rows, note = choose_rows(cache, "class", (), 30, 2)
    assert [row.title.split(" (")[0] for row in rows] == ["ant", "bee", "cat", "dog"] and "4 of the 4 classes" in note
    assert all(len(row.rois) == 2 for row in rows)
    labels = cache.read("labels")[:, 0]
    assert [set(labels[row.rois]) for row in rows] == [{0}, {1}, {2}, {3}]
    rows, _ = choose_rows(cache, "class", (), 2, 8)
    assert [row.title.split(" (")[0] for row in rows] == ["ant", "dog"], "from the rarest to the most frequent"
    rows, _ = choose_rows(cache, "class", ("eel", "bee"), 1, 8)
    assert [len(row.rois) > 0 for row in rows] == [True, False], "all that are named, also where there is none"
    rows, _ = choose_rows(cache, "bin", (), 30, 8)
    assert [set(labels[row.rois]) for row in rows] == [{0, 1}, {2}, {3}, set()]
    rows, _ = choose_rows(cache, "label", (), 30, 8)
    assert [set(labels[row.rois]) for row in rows][1:] == [{K}, {-1}]
    assert [len(row.rois) for row in choose_rows(cache, "label", (), 30, 10**12)[0]] == [18, 18, 18]
    again, _ = choose_rows(cache, "label", (), 30, 8)
    assert all((a.rois == b.rois).all() for a, b in zip(rows, again, strict=True))
    for options, message in (
        (("class", ("yak",), 30, 8), r"classes has 'yak', which is no class of .*it has ant, bee, cat and 2 more"),
        (("bin", ("ant",), 30, 8), "classes are given with by 'bin', expected 'class'"),
        (("size", (), 30, 8), "by is 'size', expected 'class', 'bin', 'label'"),
        (("class", (), 0, 8), "max_rows is 0, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_rows(cache, *options)


def test_a_crop_shows_the_box_in_its_middle():
    """The centre of a crop is that of the box, also at the edge of the image, beyond which it is black."""
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:20, :20] = (0, 255, 0)
    box = np.float32([0, 0, 20, 20])
    cut = np.asarray(crop_around(PILImage.fromarray(pixels), box[None], TILE, [PROPOSAL]))
    assert cut.shape == (TILE, TILE, 3)
    assert tuple(cut[TILE // 2, TILE // 2]) == (0, 255, 0) and tuple(cut[2, 2]) == (0, 0, 0)
    blue = np.argwhere((cut == tuple(bytes.fromhex(PROPOSAL[1:]))).all(axis=2))
    edge = 20 / 32 * TILE
    np.testing.assert_allclose(np.ptp(blue, axis=0), edge, atol=2)
    np.testing.assert_allclose(blue.mean(axis=0), TILE / 2, atol=2)


def test_the_sheet_cuts_the_objects_out_and_names_the_detectors_class(cache, folder):
    sheet = np.asarray(extract.contact_sheet(cache, folder / "val.json", folder / "images", max_rows=4, columns=3))
    top = MARGIN + 4 * LINE
    row_height = 4 * LINE + TILE
    green = []
    for row in range(4):
        y = top + row * row_height + 2 * LINE
        tiles = [sheet[y : y + TILE, MARGIN + c * (TILE + GAP) :][:, :TILE] for c in range(3)]
        green.append([bool((tile[40:72, 40:72, 1] > 200).mean() > 0.5) for tile in tiles])
    assert green[0] == [True] * 3 and sum(map(sum, green[1:])) < 3, "ants are green, others where an ant hides them"
    redness = []
    for row in (0, 3):
        below = sheet[top + row * row_height + 2 * LINE + TILE :][: 2 * LINE].astype(int)
        redness.append(below[..., 0] - below[..., 1])
    assert redness[0].max() > 60 and redness[0].min() > -30, "the detector calls ants by other names, in red"
    assert redness[1].max() < 30 and redness[1].min() < -60, "and names dogs, in green"


@pytest.mark.parametrize(("average", "name"), [("scores", "ant"), ("logits", "bee")])
def test_stages_are_averaged_as_the_detector_does(tmp_path, average, name):
    """Two stages of three prefer the ant, the other one is sure of the bee."""
    (one,) = rois(annotations(1), stages=3)
    logits = np.full_like(one.logits, -20)
    logits[:, :, 0], logits[:, 0, 0], logits[:, 0, 1], logits[:, 1:, 1] = 2, 0, 12, 0
    detector = {"stage_average": average, "activation": "softmax"}
    made = extract.write_cache(
        tmp_path / "val.zarr",
        [replace(one, logits=logits)],
        CLASSES,
        split="val",
        level="embedding",
        stages=(0.5, 0.6, 0.7),
        detector=detector,
    )
    (row, *_), _ = choose_rows(made, "class", ("ant",), 1, 1)
    (tile,) = _tiles(made, row, "class")
    assert tile.own.startswith(f"{name} 0.")


@pytest.mark.long
def test_command(cache, folder, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    arguments = ["browse", cache.url, "--annotations", str(folder / "val.json"), "--images", str(folder / "images")]
    assert main([*arguments, "--out", str(out), "--by", "label", "--columns", "4"]) == 0
    with PILImage.open(out) as sheet:
        assert sheet.format == "PNG" and str(out) in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "sheet.gif")]) == 2
    assert "expected a .png file" in " ".join(capsys.readouterr().err.split())  # long paths wrap
    assert main([*arguments[:-2], "--out", str(out)]) == 1
    assert "images: give the folder of the images that" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*arguments[:-1], str(tmp_path / "empty"), "--out", str(tmp_path / "none.png")]) == 1
    assert "empty: has no" in capsys.readouterr().err and not (tmp_path / "none.png").exists()
    content = json.loads((folder / "val.json").read_text())
    content["images"], content["annotations"] = content["images"][1:], []
    (tmp_path / "less.json").write_text(json.dumps(content))
    arguments[3] = str(tmp_path / "less.json")
    assert main([*arguments, "--out", str(tmp_path / "none.png")]) == 1
    assert "image 7 is not in" in capsys.readouterr().err
