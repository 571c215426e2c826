"""The simulated LVIS v1: structure of its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as PILImage

from extract.data.annotations import read_annotations
from extract.data.image_files import find_image

pytest.importorskip("detectron2.data")

from benchmarks.scale.dataset import EDGE, IMAGES, NUM_CLASSES, lvis_v1_classes, make_dataset
from benchmarks.speed.inputs import lvis_pairs

SHARE = 0.0005


@pytest.mark.long
def test_a_small_share_has_the_structure_of_lvis_v1(tmp_path):
    make_dataset(tmp_path, SHARE, NUM_CLASSES)
    real = lvis_v1_classes(NUM_CLASSES)
    assert len(real) == 1203 and {c["frequency"] for c in real} == set("rcf")
    train, val = (read_annotations(tmp_path / f"{split}.json", images=tmp_path) for split in IMAGES)
    assert [len(a.image_ids) for a in (train, val)] == [round(SHARE * n) for n in IMAGES.values()]
    assert train.federated and (train.classes["category_id"].to_numpy() == np.arange(1, 1204)).all()
    assert set(train.labels) == set(range(1203)), "every class is in train"
    assert not set(train.image_ids) & set(val.image_ids)
    assert np.isin(train.image_ids, lvis_pairs("train")[2]).all(), "real image ids come first"
    content = json.loads((tmp_path / "train.json").read_text())
    assert "file_name" not in content["images"][0] and len(content["annotations"]) == len(train.ids)
    counts = np.bincount(train.labels, minlength=1203)
    assert counts.tolist() == [c["instance_count"] for c in content["categories"]]
    for names in train.file_names[:3]:
        with PILImage.open(find_image(tmp_path, names)) as image:
            assert image.size == (EDGE, EDGE)


def test_more_classes_than_lvis_v1s_repeat_them_under_other_names():
    real, more = lvis_v1_classes(NUM_CLASSES), lvis_v1_classes(2 * NUM_CLASSES + 5)
    assert more[:NUM_CLASSES] == real and [c["id"] for c in more] == list(range(1, len(more) + 1))
    assert len({c["name"] for c in more}) == len(more)
    assert more[2 * NUM_CLASSES] == {**real[0], "id": 2 * NUM_CLASSES + 1, "name": real[0]["name"] + "_3"}
