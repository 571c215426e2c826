"""docs/traps.md: its tests exist, and the rows that no other test holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from hotcoco import mask as rle

from extract.cache.damage import find_damage
from extract.cache.mask_store import BoxClassPairs, MaskStore
from extract.cache.opening import open_cache
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate
from fuse.merge import merge_detections
from tests.fuse_fixtures import annotations, tiny_cache

ROOT = Path(__file__).parents[1]
SIZE = 200


def test_the_tests_of_the_page_exist():
    names = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/traps.md").read_text()))
    files = (ROOT / "tests").rglob("*.py")
    defined = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), flags=re.M)}
    assert len(names) > 30 and names <= defined


def diagonal(start: int) -> dict:
    """The mask of a line of 120 pixels."""
    bitmap = np.pad(np.eye(120, dtype=np.uint8), (start, SIZE - 120 - start))
    encoded = rle.encode(np.asfortranarray(bitmap))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def one_object(side: float, mask: dict | None = None) -> tuple[dict, pd.DataFrame, Detections]:
    """An exhaustive dataset of one square object, its class table, and a detection that is the object."""
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, side, side], "iscrowd": 0}
    shape = {"area": side**2} if mask is None else {"area": float(rle.area(mask)), "segmentation": mask}
    content = {
        "images": [{"id": 7, "height": SIZE, "width": SIZE, "file_name": "7.png"}],
        "annotations": [{**annotation, **shape}],
        "categories": [{"id": 3, "name": "c"}],
    }
    counts = {"image_count": [5], "instance_count": [5]}
    classes = pd.DataFrame({"category_id": [3], "name": ["c"], "frequency": ["r"]} | counts)
    box = np.array([[10, 10, 10 + side, 10 + side]], np.float32)
    masks = None if mask is None else [mask]
    return content, classes, Detections(np.array([7]), np.array([3]), np.array([0.5], np.float32), box, masks)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_an_object_at_a_bound_has_two_sizes(engine):
    for side, sizes in ((31, "s"), (32, "sm"), (33, "m"), (96, "ml"), (97, "l")):
        content, classes, detections = one_object(side)
        table = evaluate(content, detections, classes, iou_type="bbox", engine=engine).loc["bbox"]
        assert {size for size in "sml" if table[f"AP{size}"] == pytest.approx(100)} == set(sizes)
        assert table[["APs", "APm", "APl"]].isna().sum() == 3 - len(sizes)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_areas_of_results_with_both_shapes(engine, tmp_path):
    """A thin mask in a large box is small. A file of results with both shapes is evaluated by the mask's area."""
    content, classes, found = one_object(120, diagonal(10))
    columns = [np.repeat(column, 2, axis=0) for column in (found.image_ids, found.category_ids, found.boxes)]
    scores = np.array([0.5, 0.9], np.float32)  # the wrong one first: a false positive among small objects alone
    Detections(*columns[:2], scores, columns[2], [diagonal(10), diagonal(79)]).to_json(tmp_path / "detections.json")
    both = Detections.from_json(tmp_path / "detections.json")
    table = evaluate(content, both, classes, iou_type="segm", engine=engine).loc["segm"]
    assert table["APs"] == pytest.approx(table["AP"]) == pytest.approx(50) and np.isnan(table["APl"])


@pytest.mark.parametrize("engine", ["native", "hotcoco", "pycocotools"])
def test_a_recall_at_a_threshold_counts_as_in_pycocotools(engine):
    """`np.linspace(0, 1, 101)[35]` is above 7/20, so that seven objects of twenty reach 35 thresholds, not 36."""
    content, classes, _ = one_object(8)
    (one,) = content["annotations"]
    corners = [(10 * (i % 10), 10 * (i // 10)) for i in range(20)]
    content["annotations"] = [{**one, "id": i, "bbox": [*corner, 8, 8]} for i, corner in enumerate(corners, 1)]
    boxes = np.array([[x, y, x + 8, y + 8] for x, y in corners], np.float32)
    for found, thresholds in ((6, 31), (7, 35), (8, 41)):
        columns = np.full(found, 7), np.full(found, 3), np.full(found, 0.5, np.float32)
        table = evaluate(content, Detections(*columns, boxes[:found]), classes, iou_type="bbox", engine=engine)
        assert table["AP"].iloc[0] == pytest.approx(100 * thresholds / 101)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_consolidated_cache_opens(tmp_path):
    cache = tiny_cache(tmp_path / "val.zarr", annotations(4))
    zarr.consolidate_metadata(tmp_path / "val.zarr")
    again = open_cache(tmp_path / "val.zarr")
    assert again.fingerprint == cache.fingerprint and not list(find_damage(again))


def test_arrays_in_any_order_are_stored(tmp_path):
    """safetensors 0.8.0 writes the memory of a NumPy array as it lies, whatever its strides."""
    cache = tiny_cache(tmp_path / "val.zarr", annotations(4))
    store, image_ids = MaskStore(cache), cache.images["image_id"].to_numpy(np.int64)
    boxes = np.random.default_rng(0).uniform(0, 60, (8, 4)).astype(np.float32)
    for order in (np.asfortranarray(boxes[:4]), boxes[::2]):
        pairs = BoxClassPairs(image_ids, np.full(4, cache.classes["category_id"][0]), order)
        assert not order.flags["C_CONTIGUOUS"]
        ((block, part),) = store.by_block(pairs)
        store.write(block, pairs, ["0"] * 4)
        store.refresh()
        assert len(store.missing(part).image_ids) == 0


def test_scores_of_a_file_keep_their_order(tmp_path):
    """A false positive that float32 cannot tell from the true positive behind it: as a tie, it would come first."""
    content, classes, found = one_object(120)
    scores = [1 - 2e-8, 1 - 1e-8]
    records = [
        {"image_id": 7, "category_id": 3, "score": score, "bbox": box}
        for score, box in zip(scores, ([150, 150, 20, 20], [10, 10, 120, 120]), strict=True)
    ]
    (tmp_path / "results.json").write_text(json.dumps(records))
    read = Detections.from_json(tmp_path / "results.json")
    assert read.scores.tolist() == scores and len(set(read.scores.astype(np.float32))) == 1
    for engine in ("native", "hotcoco", "pycocotools"):
        assert evaluate(content, read, classes, engine=engine)["AP"].item() == pytest.approx(100)
    assert len(merge_detections([read, found])) == 2


def test_no_images_are_none():
    """For pycocotools, an empty list of ids stands for all."""
    content = annotations()
    dataset = load_annotations(content, [])
    assert content["images"] and dataset["images"] == dataset["annotations"] == []
