"""The store of painted masks beside a cache, and the encoding of masks at the image's size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from extract.cache.format import CacheError
from extract.cache.mask_store import BoxClassPairs, MaskStore
from extract.cache.opening import open_cache
from fuse.detections import Detections
from fuse.ops.masks import encode_bitmaps
from fuse.painted import distinct_pairs, with_masks
from tests.fuse_fixtures import annotations, tiny_cache

IMAGES = 20
"""More than a block of 16."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny_cache(tmp_path_factory.mktemp("store") / "val.zarr", annotations(IMAGES))


@pytest.fixture
def store(cache):
    """The cache's store, empty."""
    store = MaskStore(cache)
    yield store
    for name in store._files.names():
        store._files.remove(name)


def make_pairs(cache, per_image: int = 3, seed: int = 0) -> BoxClassPairs:
    """Random pairs of every image, images in descending order of their ids."""
    rng = np.random.default_rng(seed)
    image_ids = np.repeat(cache.images["image_id"].to_numpy(np.int64)[::-1], per_image)
    categories = rng.choice(cache.classes["category_id"].to_numpy(np.int64), len(image_ids))
    return BoxClassPairs(image_ids, categories, rng.uniform(0, 60, (len(image_ids), 4)).astype(np.float32))


def write_all(store: MaskStore, pairs: BoxClassPairs) -> None:
    for block, part in store.by_block(pairs):
        store.write(
            block, part, [f"{image}:{key.hex()}" for image, key in zip(part.image_ids, part.keys(), strict=True)]
        )
    store.refresh()


def assert_holds(store: MaskStore, pairs: BoxClassPairs) -> None:
    for block, part in store.by_block(pairs):
        masks = store.read(block)
        for image_id, key in zip(part.image_ids.tolist(), part.keys(), strict=True):
            assert masks[image_id][key] == {"size": [48, 64], "counts": f"{image_id}:{key.hex()}"}


def test_what_is_written_is_read_and_only_the_rest_is_missing(cache, store):
    pairs = make_pairs(cache)
    assert not store and len(store.missing(pairs).image_ids) == len(pairs.image_ids)
    half = np.arange(len(pairs.image_ids)) % 2 == 0
    write_all(store, pairs.take(half))
    assert store
    missing = store.missing(pairs)
    assert sorted(missing.keys()) == sorted(pairs.take(~half).keys()) and (np.diff(missing.image_ids) >= 0).all()
    write_all(store, missing)
    again = MaskStore(cache)
    assert len(again.missing(pairs).image_ids) == 0
    assert_holds(again, pairs)


def test_an_empty_set_of_pairs(cache, store):
    none = make_pairs(cache).take(np.empty(0, np.int64))
    assert list(store.by_block(none)) == [] and len(store.missing(none).image_ids) == 0
    assert len(distinct_pairs([]).image_ids) == 0


def test_keys_tell_boxes_and_classes_apart_to_the_last_bit(cache):
    one = make_pairs(cache).take(np.array([0]))
    moved = one._replace(boxes=np.nextafter(one.boxes, np.float32(1e9)))
    assert len({*one.keys(), *moved.keys(), *one._replace(category_ids=one.category_ids + 1).keys()}) == 3


def test_an_unknown_image_is_refused(cache, store):
    pairs = make_pairs(cache).take(np.array([0]))
    with pytest.raises(CacheError, match="the cache has no image 5"):
        store.missing(pairs._replace(image_ids=np.array([5])))


def test_masks_of_another_cache_at_the_same_place_are_not_read(cache, store, tmp_path):
    write_all(store, make_pairs(cache))
    other = tiny_cache(tmp_path / "val.zarr", annotations(IMAGES), detector="another")
    (tmp_path / "val.masks").symlink_to(store.url)
    assert MaskStore(open_cache(str(tmp_path / "val.zarr"))).url == str(tmp_path / "val.masks")
    assert store and not MaskStore(other)


def test_a_damaged_part_is_named(cache, store):
    write_all(store, make_pairs(cache))
    name = sorted(store._files.names())[1]
    content = bytearray(store._files.read(name))
    content[-1] ^= 1
    store._files.write(name, bytes(content))
    with pytest.raises(CacheError, match=f"{name}: damaged: .*delete the file, and its masks are painted again"):
        store.read(1)
    store._files.remove(name)
    store.refresh()
    assert {*store.missing(make_pairs(cache)).image_ids} == {*cache.images["image_id"][16:]}


def test_beside_a_cache_in_an_object_store():
    pytest.importorskip("fsspec")
    cache = tiny_cache("memory://painted/val.zarr", annotations(2))
    store, pairs = MaskStore(cache), make_pairs(cache)
    assert store.url == "memory://painted/val.masks" and not store
    write_all(store, pairs)
    assert_holds(MaskStore(cache), pairs)
    name = store.write_request(pairs)
    assert store.read_request(name).keys() == pairs.keys()
    store.remove_request(name)
    assert name not in store._files.names()


def test_detections_share_masks(cache, store):
    pairs = make_pairs(cache)
    scores = np.linspace(1, 0, len(pairs.image_ids), dtype=np.float32)
    rows = {"all": Detections(pairs.image_ids, pairs.category_ids, scores, pairs.boxes)}
    rows |= {"few": rows["all"].take(np.array([7, 2, 2, 40])), "none": rows["all"].take(slice(0))}
    distinct = distinct_pairs(rows.values())
    assert len(distinct.image_ids) == len(pairs.image_ids) and (np.diff(distinct.image_ids) >= 0).all()
    write_all(store, distinct)
    found = with_masks(store, rows, distinct)
    assert list(found) == ["all", "few", "none"] and found["none"].rles == []
    expected = [f"{image}:{key.hex()}" for image, key in zip(pairs.image_ids, pairs.keys(), strict=True)]
    assert [rle["counts"] for rle in found["all"].rles] == expected
    assert all(found["few"].rles[i] is found["all"].rles[j] for i, j in enumerate([7, 2, 2, 40]))


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(*map(st.integers, (1, 1, 1), (3, 9, 9)))))
def test_bitmaps_are_encoded_as_by_coco(masks):
    expected = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    assert encode_bitmaps(masks) == [{**one, "counts": one["counts"].decode()} for one in expected]


@pytest.mark.long
def test_bitmaps_of_an_image_and_of_other_kinds():
    y, x = np.mgrid[:240, :320]
    disc, full, empty = (y - 120) ** 2 + (x - 100) ** 2 < 9000, y >= 0, y < 0
    noise = np.random.default_rng(0).random((240, 320)) < 0.5
    masks = np.stack([disc, full, empty, noise, x == 7, y == 239])
    expected = [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() for mask in masks]
    assert [rle["counts"] for rle in encode_bitmaps(masks[:, :, ::-1])] != expected
    assert [rle["counts"] for rle in encode_bitmaps(masks)] == expected
    assert encode_bitmaps(np.empty((0, 4, 5), bool)) == []
    with pytest.raises(ValueError, match=r"masks are uint8 \(4, 5\), expected bool \(N, H, W\)"):
        encode_bitmaps(np.zeros((4, 5), np.uint8))
