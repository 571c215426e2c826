"""Numbers at the edges of their range, from a cache to its evaluation: the table in docs/reliability.md."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage

import calib
import fuse
from extract import RoIs, write_cache
from extract.cache.format import CacheError
from extract.data.decoding import decode_image
from fuse.ops.masks import encode_masks

SIZE = 500


def classes(count: int) -> pd.DataFrame:
    index = np.arange(count)
    names = [f"class {i}" for i in index]
    table = {"category_id": index + 1, "name": names, "frequency": ["r"] * count}
    return pd.DataFrame({**table, "image_count": index + 1, "instance_count": index + 1})


def image(image_id: int, rois: int, num_classes: int, label: int = 0, seed: int = 0) -> RoIs:
    """RoIs of one object each, whose label is `label`; the logits tell it."""
    rng = np.random.default_rng(seed + image_id)
    corners = rng.integers(0, SIZE - 40, (rois, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.integers(10, 40, (rois, 2))], 1).astype(np.float32)
    logits = rng.normal(size=(rois, 1, num_classes + 1)).astype(np.float16)
    logits[:, 0, label] += 4
    return RoIs(
        image_id=image_id,
        height=SIZE,
        width=SIZE,
        proposals=boxes[:, None],
        boxes=boxes,
        logits=logits,
        objectness=np.ones(rois, np.float32),
        features=rng.normal(size=(rois, 1, 4)).astype(np.float16),
        labels=np.full((rois, 1), label, np.int32),
        ious=np.full((rois, 1), 1 if label < num_classes else 0.2, np.float32),
        gt_ids=np.zeros((rois, 1), np.int64),
        is_gt=np.ones(rois, bool) & (label < num_classes),
    )


def write(url, images, num_classes: int, split: str = "val"):
    return write_cache(str(url), images, classes(num_classes), split=split, level="embedding")


def annotations(images, num_classes: int) -> dict:
    """The first RoIs of the images as objects of class 0."""
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": c.category_id, "name": c.name} for c in classes(num_classes).itertuples()]
    for one in images:
        content["images"].append({"id": one.image_id, "height": SIZE, "width": SIZE})
        for x1, y1, x2, y2 in one.boxes[:3].tolist():
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "image_id": one.image_id, "category_id": 1, **box})
    return content


@pytest.mark.long
@pytest.mark.parametrize(("num_classes", "rois"), [(1, (5, 5)), (20_000, (3, 3)), (5, (0, 4)), (5, (4_000, 1))])
def test_any_number_of_classes_and_rois(num_classes, rois, tmp_path):
    images = [image(10 + i, count, num_classes) for i, count in enumerate(rois)]
    background = image(50, 20, num_classes, label=num_classes)
    train = write(tmp_path / "train.zarr", [image(1, 5, num_classes), background], num_classes, "train")
    head = calib.train_head(train, head_type="linear", steps=2, classes_per_step=2, device="cpu")
    val = write(tmp_path / "val.zarr", images, num_classes)
    assert [len(rois) for rois in val] == list(rois)
    found = fuse.detect(val, head, mode="cat", tail=3)
    assert len(found) == sum(min(count * num_classes, 300) for count in rois)
    table = fuse.evaluate(annotations(images, num_classes), found, val.classes, iou_type="bbox")
    assert table.attrs["evaluated"]["AP"] == 1 and table["AP"].notna().all()


def test_without_foreground_nothing_is_trained_and_nothing_found(tmp_path):
    background = [image(i, 5, 3, label=3) for i in (1, 2)]
    with pytest.raises(ValueError, match="no foreground RoIs in stage 0, nothing to sample"):
        calib.train_head(write(tmp_path / "train.zarr", background, 3, "train"), head_type="linear", steps=1)
    val = write(tmp_path / "val.zarr", background, 3)
    found = fuse.detect(val, mode="original")
    content = annotations(background, 3) | {"annotations": []}
    table = fuse.evaluate(content, found, val.classes, iou_type="bbox")
    assert table["AP"].isna().all() and table.attrs["evaluated"]["AP"] == 0


@pytest.mark.parametrize("field", ["features", "logits", "boxes", "objectness"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])
def test_what_is_not_finite_in_a_cache_is_refused(field, value, tmp_path):
    good = image(7, 4, 3)
    values = getattr(good, field).astype(np.float32)
    values.reshape(4, -1)[2, -1] = value
    images = [replace(good, **{field: values})]
    if value == 7e4 and field in ("boxes", "objectness"):  # float32, where it is a number as any other
        assert (getattr(write(tmp_path / "c.zarr", images, 3)[0], field) == values).all()
        return
    with pytest.raises(CacheError, match=rf"image 7: {field} of RoI 2 are not finite as float"):
        write(tmp_path / "c.zarr", images, 3)


def test_denormal_numbers_stay(tmp_path):
    least = np.float16(6e-8)
    good = image(7, 4, 3)
    tiny = replace(good, features=np.full_like(good.features, least), objectness=np.full(4, 1e-45, np.float32))
    stored = write(tmp_path / "c.zarr", [tiny], 3)[0]
    assert (stored.features == least).all() and (stored.objectness == np.float32(1e-45)).all() and least > 0
    scores = np.full((4, 4), 1e-45, np.float32)
    found = fuse.class_nms(good.boxes, scores)
    assert len(found.score) and (found.score == np.float32(1e-45)).all(), "more than the threshold 0"


def test_equal_scores_are_ordered_by_roi_and_class(tmp_path):
    good = image(7, 30, 5)
    corners = np.arange(30, dtype=np.float32)[:, None] * [16, 0]
    boxes = np.concatenate([corners, corners + 10], 1).astype(np.float32)  # none overlaps another
    val = write(tmp_path / "val.zarr", [replace(good, boxes=boxes, logits=np.zeros_like(good.logits))], 5)
    every = fuse.detect(val, mode="original", max_detections=-1)
    assert len(every) == 30 * 5 and len(set(every.scores.tolist())) == 1
    first = fuse.detect(val, mode="original", max_detections=12)
    assert first.boxes.tolist() == every.boxes[:12].tolist() and (first.category_ids == every.category_ids[:12]).all()
    order = np.lexsort((every.boxes[:, 0], every.category_ids))
    assert (order == np.arange(len(every))).all(), "as docs/traps.md says: by class, then by RoI"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_of_one_pixel_and_of_100_megapixels(tmp_path):
    for size in ((1, 1), (10_000, 10_000)):
        PILImage.new("L", size, 7).save(tmp_path / "x.png")
        pixels = decode_image(tmp_path / "x.png")
        assert pixels.shape == (*size, 3) and pixels[0, 0, 0] == pixels[-1, -1, 2] == 7
    del pixels
    masks, boxes = np.full((1, 28, 28), 255, np.uint8), np.array([[0, 0, 10_000, 10_000]], np.float32)
    (rle,) = encode_masks(masks, boxes, 10_000, 10_000)
    assert rle["size"] == [10_000, 10_000] and len(json.dumps(rle, default=str)) < 1000
    (rle,) = encode_masks(masks, boxes / 10_000, 1, 1)
    assert rle["size"] == [1, 1]
