"""Plots and pictures of results: what they show, and that nothing is shown or saved by itself."""

from __future__ import annotations

import doctest
from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image as PILImage

import fuse
import fuse.plots
from extract.detectors.base import ImageDetections
from fuse.detections import Detections
from fuse.drawing import COLOURS, class_colours
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.outcomes import object_outcomes
from fuse.gallery import class_outcomes, gained_images, look_alikes, lost_images
from tests.fuse_fixtures import CLASSES, annotations

matplotlib.use("agg")
NAMES = ["ant", "bee", "cat"]


def detections(*found: tuple[int, int, float, tuple[int, int, int, int]]) -> Detections:
    """Detections from (image id, category id, score, xyxy)."""
    images, categories, scores, boxes = zip(*found, strict=True)
    return Detections(np.array(images), np.array(categories), np.float32(scores), np.float32(boxes))


@pytest.fixture
def content() -> dict:
    """Image 7 has an ant and a cat, image 17 a bee, and a crowd of cats."""
    made = annotations(2)
    objects = [
        (7, 3, [0, 0, 20, 20], 0),
        (7, 9, [30, 0, 20, 20], 0),
        (17, 4, [0, 0, 20, 20], 0),
        (17, 9, [0, 0, 60, 40], 1),
    ]
    made["annotations"] = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": 400, "iscrowd": crowd}
        for i, (image, category, box, crowd) in enumerate(objects, 1)
    ]
    return made


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_the_examples_in_the_docstrings():
    modules = fuse.plots, fuse.plots.ap, fuse.plots.errors, fuse.plots.objects
    found = [one for module in modules for one in doctest.DocTestFinder().find(module)]
    runner = doctest.DocTestRunner()
    names: dict = {}
    for one in found:  # the set-up in the docstring of the module first
        one.globs = names
        runner.run(one, clear_globs=False)
    assert runner.tries > 15 and not runner.failures


def test_outcomes_of_objects(content):
    """The ant is taken for a dog, whose detection is better than the ant's own; the cat is named; the bee is missed."""
    found = detections(
        (7, 3, 0.3, (0, 0, 20, 20)),
        (7, 12, 0.6, (1, 0, 20, 20)),
        (7, 9, 0.5, (30, 0, 50, 20)),
        (7, 9, 0.5, (30, 1, 50, 20)),
        (17, 4, 0.9, (15, 15, 40, 40)),
        (27, 4, 0.9, (15, 15, 40, 40)),
    )
    one = object_outcomes(load_annotations(content), found, CLASSES)
    assert one.labels.tolist() == [0, 2, 1] and one.image_ids.tolist() == [7, 7, 17]
    assert one.objects.tolist() == [0, 0, 1, 1, -1, -1]
    assert one.best.tolist() == [1, 2, -1] and one.best_own.tolist() == [0, 2, -1]
    assert one.taken_for.tolist() == [3, 2, -1] and one.named.tolist() == [False, True, False]
    np.testing.assert_allclose(one.own_scores, [0.3, 0.5, np.nan])
    tail = CLASSES["instance_count"].to_numpy() < 100
    assert class_outcomes(one, tail)[:3].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert look_alikes(one, 0) == [(3, 1)] and look_alikes(one, 2) == []
    shuffled = CLASSES.iloc[[2, 0, 4, 1, 3]].reset_index(drop=True)
    assert object_outcomes(load_annotations(content), found, shuffled).taken_for.tolist() == [4, 0, -1]


def test_images_with_gains_and_losses(content):
    tail = CLASSES["instance_count"].to_numpy() < 10
    ant, cat, bee = (7, 3, 0.9, (0, 0, 20, 20)), (7, 9, 0.5, (30, 0, 50, 20)), (17, 4, 0.9, (0, 0, 20, 20))
    before, after = (
        object_outcomes(load_annotations(content), detections(*one), CLASSES) for one in ([cat, bee], [ant])
    )
    assert gained_images(before, after, tail, 5) == [7], "the ant is a tail class"
    assert lost_images(before, after, 5) == [17], "in image 7 as many are gained as lost"
    assert gained_images(after, before, tail, 5) == [17] and lost_images(after, before, 5) == []


def test_plots_draw_into_given_axes(content):
    found = detections((7, 3, 0.9, (0, 0, 20, 20)), (7, 9, 0.5, (30, 0, 50, 20)))
    rows = {"original": found.take(slice(1, 2)), "calibrated": found}
    tables = {name: fuse.per_class_ap(content, row, CLASSES, iou_type="bbox") for name, row in rows.items()}
    _, ax = plt.subplots()
    assert fuse.plots.ap_by_count(tables, ax=ax) is ax
    points = [one for one in ax.collections if (one.get_gid() or "").startswith("points")]
    assert [len(one.get_offsets()) for one in points] == [3, 3], "classes without ground truth are left out"
    assert ax.get_legend_handles_labels()[1] == ["original", "calibrated"]
    _, ax = plt.subplots()
    bounds = pd.DataFrame({"low": 1.0, "high": 99.0}, index=["AP(0,10)", "AP[10,100)"])
    fuse.plots.per_bin(tables, intervals=dict.fromkeys(tables, bounds), ax=ax)
    assert [round(bar.get_height(), 1) for bar in ax.patches] == [0, 100, 50, 100]
    (ends, _) = next(one for one in ax.containers if isinstance(one, ErrorbarContainer)).lines[2][0].get_segments()
    assert np.allclose(ends[:, 1], [0, 99]), "from the interval's low to its high, and never into the bar from above"
    ax = fuse.plots.per_bin({"folder/" * 30: tables["original"], "b": tables["calibrated"]})
    ax.figure.canvas.draw()  # matplotlib warns of axes for which a long name leaves no place
    ax = fuse.plots.confusions(content, rows, CLASSES, tail=1e9)
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) == 6 and all(a.y0 >= b.y1 for a, b in pairwise(boxes)), "labels do not overlap"
    ax = fuse.plots.confusions(content, rows, CLASSES, max_classes=1)
    assert ax.get_yticklabels()[0].get_text() == "ant (3)  original"
    with pytest.raises(ValueError, match="rows are 1, expected 2: before and after"):
        fuse.plots.gallery(content, {"a": found}, CLASSES, {7: np.zeros((48, 64, 3), np.uint8)})


def test_a_gallery_of_a_folder_shows_the_images_with_gains(content, tmp_path):
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.png"
    PILImage.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "7.png")
    none, named = detections((7, 12, 0.9, (0, 0, 20, 20))), detections((7, 3, 0.9, (0, 0, 20, 20)))
    ax = fuse.plots.gallery(content, {"a": none, "b": named}, CLASSES, tmp_path)
    one = ax.images[0].get_array()
    drawn = fuse.plots.gallery(content, {"a": none, "b": named}, CLASSES, {7: np.full((48, 64, 3), 90, np.uint8)})
    assert np.array_equal(one, drawn.images[0].get_array()), "image 7 alone has a gain"
    with pytest.raises(FileNotFoundError, match=r"has no 17\.png"):
        fuse.plots.gallery(content, {"a": named, "b": named}, CLASSES, tmp_path)  # without gains: the first images
    with pytest.raises(ValueError, match="has no image 8"):
        fuse.plots.gallery(content, {"a": none, "b": named}, CLASSES, {8: np.zeros((48, 64, 3), np.uint8)})


def test_errors_of_an_unknown_iou_type(content):
    rows = {"a": detections((7, 3, 0.9, (0, 0, 20, 20)))}
    table = fuse.error_table(content, rows, CLASSES)
    with pytest.raises(ValueError, match="iou_type is 'segm', expected 'bbox'"):
        fuse.plots.errors(table, iou_type="segm")


@pytest.mark.long
def test_a_pair_has_titles_and_a_colour_per_class():
    pixels = np.zeros((100, 120, 3), np.uint8)
    boxes = np.float32([[10, 10, 50, 50], [60, 40, 110, 90]])
    before = ImageDetections(boxes, np.array([0, 2]), np.float32([0.9, 0.8]))
    after = ImageDetections(boxes, np.array([1, 2]), np.float32([0.9, 0.8]))

    def halves(**options) -> list[set]:
        drawn = np.asarray(fuse.draw_pair(pixels, (before, None), (after, None), NAMES, **options))
        assert drawn.shape[1] == 2 * 600 + 8 and drawn.shape[0] > 500, "below a title"
        return [set(map(tuple, half.reshape(-1, 3))) for half in (drawn[:, :600], drawn[:, 608:])]

    colour = {label: tuple(bytes.fromhex(c[1:])) for label, c in class_colours(np.array([0, 2, 1, 2])).items()}
    left, right = halves()
    assert colour[2] in left & right and colour[0] in left - right and colour[1] in right - left
    left, right = halves(changed_only=True)
    assert colour[2] not in left | right and colour[0] in left
    assert set(class_colours(np.arange(20)).values()) == set(COLOURS)


def test_of_equal_boxes_the_better_one_is_on_top():
    boxes = np.float32([[40, 40, 440, 440]] * 2)
    two = ImageDetections(boxes, np.array([0, 1]), np.float32([0.9, 0.8]))
    drawn = fuse.draw_detections(np.zeros((480, 480, 3), np.uint8), two, None, NAMES)
    assert tuple(drawn[440, 240]) == tuple(bytes.fromhex(class_colours(two.labels)[0][1:]))


def test_labels_fit_the_image():
    pixels = np.zeros((60, 60), np.uint8)
    one = ImageDetections(np.float32([[5, 5, 55, 55]]), np.array([0]), np.float32([0.5]))
    drawn = fuse.draw_detections(pixels, one, np.ones((1, 60, 60), bool), ["a very long name " * 9])
    assert drawn.shape == (480, 480, 3) and (drawn[200:300, 200:300] == 0).all(), "masks are outlines"
    large = fuse.draw_detections(np.zeros((960, 960, 3), np.uint8), one, None, ["a"])
    small = fuse.draw_detections(np.zeros((480, 480, 3), np.uint8), one, None, ["a"])
    assert (large > 0).any(2).sum() > 1.3 * (small > 0).any(2).sum(), "text and lines grow with the image"
