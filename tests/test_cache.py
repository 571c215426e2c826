"""The cache format: round trips, interruption, damage, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import google_crc32c
import numpy as np
import pandas as pd
import pytest
import zarr

from extract import CacheError, RoIs, open_cache, write_cache
from extract.__main__ import main
from extract.cache import columns, shard_io
from extract.cache.creation import create_cache
from extract.cache.format import COLUMNS, Header
from extract.cache.hdf5 import export_hdf5, import_hdf5
from extract.cache.shard_io import ShardedArray
from extract.cache.values import HALVES_AT_ONCE, all_finite
from extract.cache.writer import resume_cache
from tests.toy_cache import toy_cache

K = 5
CLASSES = pd.DataFrame(
    {
        "category_id": [1, 3, 4, 8, 9],
        "name": ["ant", "bee", "café", "dog", "eel"],
        "frequency": list("rrccf"),
        "image_count": [1, 2, 20, 30, 400],
        "instance_count": [1, 2, 40, 50, 5000],
    }
)
HEADER = Header("val", "pooled", (0.5,), {"name": "toy"}, {})


def make_boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    corner = rng.random((*shape, 2), np.float32) * 50
    return np.concatenate([corner, corner + rng.random((*shape, 2), np.float32) * 20], -1)


def make_rois(image_id: int, count: int, *, stages: int = 1, per_class: bool = False, masks: bool = True) -> RoIs:
    rng = np.random.default_rng(image_id)
    return RoIs(
        image_id=image_id,
        height=100,
        width=120,
        proposals=make_boxes(rng, (count, stages)),
        boxes=make_boxes(rng, (count, K) if per_class else (count,)),
        logits=rng.normal(size=(count, stages, K + 1)).astype(np.float16),
        objectness=rng.random(count, np.float32),
        features=rng.normal(size=(count, stages, 2, 7, 7)).astype(np.float16),
        labels=rng.integers(-1, K + 1, (count, stages)).astype(np.int32),
        ious=rng.random((count, stages), np.float32),
        gt_ids=rng.integers(-1, 2**40, (count, stages)),
        is_gt=np.zeros(count, bool),
        masks=rng.integers(0, 255, (count, 28, 28)).astype(np.uint8) if masks else None,
        flipped=bool(image_id % 2),
    )


def make_images(count: int = 40, **options) -> list[RoIs]:
    """Images of very different sizes, some without any RoI; ids that are no positions."""
    sizes = np.random.default_rng(0).integers(0, 30, count) * (np.arange(count) % 5 > 0)
    return [make_rois(1000 - 7 * i, int(size), **options) for i, size in enumerate(sizes)]


def same(a: RoIs, b: RoIs) -> None:
    for name in (f.name for f in dataclasses.fields(RoIs)):
        left, right = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(left, right, err_msg=name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, name


@pytest.fixture
def small_shards(monkeypatch):
    """Several shards to a block, several chunks to a shard, and pieces small enough for threads."""
    monkeypatch.setattr(columns, "SHARD_BYTES", 64 * 1024)
    monkeypatch.setattr(columns, "CHUNK_BYTES", {"train": 600, "val": 600})
    monkeypatch.setattr(shard_io, "BATCH_BYTES", 2000)
    monkeypatch.setattr(shard_io, "PIECE_BYTES", 4000)
    monkeypatch.setattr(shard_io, "SMALL_PIECE_BYTES", 1500)
    monkeypatch.setattr(shard_io, "PIECES_AHEAD", 3)


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("options", [{}, {"stages": 3}, {"per_class": True, "masks": False}])
def test_what_goes_in_comes_out(tmp_path, options):
    images = make_images(**options)
    stages = (0.5, 0.6, 0.7)[: options.get("stages", 1)]
    layers = [[(np.ones((4, 98), np.float32), np.zeros(4, np.float32))] for _ in stages]
    cache = write_cache(
        tmp_path / "c.zarr",
        images,
        CLASSES,
        split="val",
        level="pooled",
        stages=stages,
        fc_layers=layers,
        detector={"name": "toy"},
    )
    assert len(cache) == 40 and cache.stages == stages and cache.num_classes == K
    assert cache.classes.equals(CLASSES.rename_axis("class")) and cache.detector == {"name": "toy"}
    for position, rois in enumerate(images):
        same(cache[position], rois)
    same(cache.image(images[3].image_id), images[3])
    for field in cache.fields:
        packed = np.concatenate([getattr(r, field) for r in images])
        np.testing.assert_array_equal(cache.read(field), packed)
        rows = np.random.default_rng(1).integers(0, len(packed), 50)
        np.testing.assert_array_equal(cache.take(field, rows), packed[rows])
    assert cache.read("is_gt").dtype == bool
    np.testing.assert_array_equal(cache.fc_layers(len(stages) - 1)[0][0], layers[0][0][0])
    assert [r.image_id for r in cache] == [r.image_id for r in images]
    assert "40" in repr(cache) and "<table>" in cache._repr_html_()


def test_an_image_without_rois_and_a_cache_of_nothing_else(tmp_path):
    cache = write_cache(tmp_path / "c.zarr", [make_rois(1, 0), make_rois(2, 0)], CLASSES, split="val", level="pooled")
    assert len(cache.image(2)) == 0 and cache.read("features").shape == (0, 1, 2, 7, 7)
    assert cache.take("labels", np.empty(0, int)).shape == (0, 1)
    assert "RoIs" in repr(cache)


@pytest.mark.long
def test_blocks_in_any_order_and_twice_give_the_same_bytes(tmp_path):
    images = make_images()
    table = pd.DataFrame(
        [(r.image_id, r.height, r.width, r.flipped) for r in images],
        columns=["image_id", "height", "width", "flipped"],
    )
    for name, order in {"a": [0, 1, 2], "b": [2, 0], "b_resumed": [1, 0]}.items():
        url = str(tmp_path / name[0])
        writer = (
            resume_cache(url)
            if "resumed" in name
            else create_cache(url, images[0], HEADER, CLASSES, table, capacity=30)
        )
        for block in order:
            writer.write_block(block, images[16 * block : 16 * block + 16])
        assert writer.pending() == ([1] if name == "b" else [])
        if name == "b":
            with pytest.raises(CacheError, match="16 of 40 images are not written yet"):
                writer.finish()
            with pytest.raises(CacheError, match="not finished, 24 of 40 images are done; the command that began it"):
                open_cache(url)
        else:
            writer.finish()
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.long
def test_writers_side_by_side_give_the_same_bytes(tmp_path, small_shards):
    images = make_images(100)
    whole = write_cache(tmp_path / "a", images, CLASSES, split="val", level="pooled")
    table = whole.images.drop(columns="roi_count")
    create_cache(str(tmp_path / "b"), images[0], whole.header, CLASSES, table, capacity=29)
    group = zarr.open_group(tmp_path / "b")
    for name in ("image", *(c.name for c in COLUMNS.values())):
        assert group.attrs["rows_per_block"] % group[name].shards[0] == 0, "no two blocks share a shard"
    assert group["progress"].chunks[0] == group.attrs["images_per_block"]

    def write(blocks: range) -> None:
        writer = resume_cache(str(tmp_path / "b"))
        for block in blocks:
            writer.write_block(block, images[16 * block : 16 * block + 16])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, [range(6, -1, -2), range(0, 7, 2), range(1, 7, 2)]))
    resume_cache(str(tmp_path / "b")).finish()
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.long
def test_the_files_are_those_of_zarr(tmp_path, small_shards, monkeypatch):
    images = make_images(masks=True)
    cache = write_cache(tmp_path / "a", images, CLASSES, split="val", level="pooled")
    assert all(column.sharded for column in cache.columns.values())
    monkeypatch.setattr(ShardedArray, "from_zarr", lambda *_: None)
    zarrs = write_cache(tmp_path / "b", images, CLASSES, split="val", level="pooled")
    assert zarrs.fingerprint == cache.fingerprint
    rows = np.random.default_rng(0).integers(0, cache.offsets[-1], 300)
    for field in cache.fields:
        np.testing.assert_array_equal(cache.read(field), zarrs.read(field))
        np.testing.assert_array_equal(cache.take(field, rows), zarrs.take(field, rows))
        np.testing.assert_array_equal(cache.take(field, rows), cache.read(field)[rows])
    for a, b in zip(cache, zarrs, strict=True):
        same(a, b)
    assert repr(cache).replace("/a", "/b") == repr(zarrs)
    for folder in ("a", "b"):  # Zarr does not tell the checksums of its chunks
        (tmp_path / folder / "zarr.json").unlink()
        for name in ("checksums", "block_checksums"):
            shutil.rmtree(tmp_path / folder / name, ignore_errors=True)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_one_image_without_the_heavy_columns(tmp_path):
    images = make_images(20)
    cache = write_cache(tmp_path / "c", images, CLASSES, split="val", level="pooled")
    same(cache.image_at(-1), images[-1])
    same(cache.image_at(7, {"logits"}), dataclasses.replace(images[7], features=None, masks=None))
    same(cache.image_at(7, ["masks", "boxes"]), dataclasses.replace(images[7], features=None))
    with pytest.raises(CacheError, match="RoIs have no feature; they have proposals"):
        cache.image_at(7, ["feature"])
    with pytest.raises(IndexError):
        cache.image_at(20)


@pytest.mark.long
def test_threads_may_read_at_once(tmp_path, small_shards):
    images = make_images(60)
    cache = write_cache(tmp_path / "c", images, CLASSES, split="val", level="pooled")
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(60), 3)).tolist()
    with ThreadPoolExecutor(6) as pool:
        for position, rois in zip(order, pool.map(cache.image_at, order), strict=True):
            same(rois, images[position])
    (again,) = pickle.loads(pickle.dumps([cache]))
    same(again[3], images[3])


def test_a_finished_cache_is_not_resumed(tmp_path):
    write_cache(tmp_path / "c.zarr", make_images(3), CLASSES, split="val", level="pooled")
    with pytest.raises(CacheError, match="is finished already"):
        resume_cache(str(tmp_path / "c.zarr"))


@pytest.mark.long
def test_other_stores_than_folders():
    url = "memory://caches/c.zarr"
    for _ in range(2):
        write_cache(url, images := make_images(20), CLASSES, split="val", level="pooled", overwrite=True)
    cache = open_cache(url)
    same(cache[7], images[7])
    assert all(column.sharded for column in cache.columns.values()) and "images" in repr(cache)
    rows = np.random.default_rng(0).integers(0, cache.offsets[-1], 50)
    for field in cache.fields:
        packed = np.concatenate([getattr(r, field) for r in images])
        np.testing.assert_array_equal(cache.read(field), packed)
        np.testing.assert_array_equal(cache.take(field, rows), packed[rows])
    with pytest.raises(CacheError, match="something is there already"):
        write_cache(url, images, CLASSES, split="val", level="pooled")


@pytest.mark.long
def test_resuming_in_other_stores(tmp_path):
    images = make_images(40)
    local = write_cache(tmp_path / "c", images, CLASSES, split="val", level="pooled")
    url, table = "memory://caches/resumed", local.images.drop(columns="roi_count")
    create_cache(url, images[0], local.header, CLASSES, table, capacity=29).write_block(1, images[16:32])
    writer = resume_cache(url)
    assert writer.pending() == [0, 2]
    for block in writer.pending():
        writer.write_block(block, images[16 * block : 16 * block + 16])
    cache = writer.finish()
    assert cache.fingerprint == local.fingerprint
    for a, b in zip(cache, images, strict=True):
        same(a, b)
    fsspec.filesystem("memory").rm("/caches/resumed/label/c.0.0")
    with pytest.raises(CacheError, match="resumed/label: .* shards, the manifest needs"):
        open_cache(url)


@pytest.mark.process  # h5py runs `uname` when it is imported
def test_hdf5_round_trip(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", stages=(0.5, 0.6))
    export_hdf5(cache, tmp_path / "c.h5")
    again = import_hdf5(tmp_path / "c.h5", str(tmp_path / "d.zarr"))
    assert again.fingerprint == cache.fingerprint
    assert content(tmp_path / "c.zarr").keys() == content(tmp_path / "d.zarr").keys()
    for a, b in zip(cache, again, strict=True):
        same(a, b)
    for (w, b), (v, c) in zip(cache.fc_layers(1), again.fc_layers(1), strict=True):
        assert np.array_equal(w, v) and np.array_equal(b, c)
    with pytest.raises(FileExistsError, match=r"c\.h5: exists already"):
        export_hdf5(cache, tmp_path / "c.h5")


@pytest.mark.process
def test_damaged_hdf5_files_are_named(tmp_path):
    import h5py

    path = tmp_path / "c.h5"
    export_hdf5(toy_cache(tmp_path / "c.zarr", images=4), path)
    with h5py.File(path) as file:
        tables = [file[name] for name in ("classes/name", "images/height", "detector/stage_0/weight_0", "label")]
        assert all(table.fletcher32 for table in tables)
        whole, offset = path.read_bytes(), tables[3].id.get_chunk_info(0).byte_offset
    path.write_bytes(whole[: offset + 5] + b"x" + whole[offset + 6 :])
    with pytest.raises(CacheError, match=r"c\.h5: image 100: damaged: .*(fletcher32|filter)"):
        import_hdf5(path, str(tmp_path / "d.zarr"))
    path.write_bytes(whole)
    for change in ({"label": (0, 0)}, {"images/height": 0}):
        with h5py.File(path, "a") as file:
            for name, index in change.items():
                file[name][index] += 1
        with pytest.raises(CacheError, match=r"c\.h5: .*damaged: .*(digest|fingerprint)"):
            import_hdf5(path, str(tmp_path / "d.zarr"))
        path.write_bytes(whole)
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.process
def test_hdf5_faults(tmp_path):
    import h5py

    with pytest.raises(FileNotFoundError, match="no such file"):
        import_hdf5(tmp_path / "none.h5", str(tmp_path / "d.zarr"))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CacheError, match=r"text\.h5: not an HDF5 file"):
        import_hdf5(tmp_path / "text.h5", str(tmp_path / "d.zarr"))
    export_hdf5(toy_cache(tmp_path / "c.zarr"), tmp_path / "c.h5")
    for header, message in {"{": "truncated|malformed", '{"split": "val"}': "missing required field `level`"}.items():
        with h5py.File(tmp_path / "c.h5", "a") as file:
            whole, file.attrs["header"] = file.attrs["header"], header
        with pytest.raises(CacheError, match=rf"c\.h5: .*({message})"):
            import_hdf5(tmp_path / "c.h5", str(tmp_path / "d.zarr"))
        with h5py.File(tmp_path / "c.h5", "a") as file:
            file.attrs["header"] = whole
    for name, value, message in (
        ("version", 2, r"format version 2, this library reads 1 \(written by a newer version\)"),
        ("format", "other", "format 'other', expected 'tailcal-roi-cache'"),
    ):
        with h5py.File(tmp_path / "c.h5", "a") as file:
            whole, file.attrs[name] = file.attrs[name], value
        with pytest.raises(CacheError, match=message):
            import_hdf5(tmp_path / "c.h5", str(tmp_path / "d.zarr"))
        with h5py.File(tmp_path / "c.h5", "a") as file:
            file.attrs[name] = whole
    with h5py.File(tmp_path / "c.h5", "a") as file:
        del file["label"]
    with pytest.raises(CacheError, match=r"c\.h5: .*label"):
        import_hdf5(tmp_path / "c.h5", str(tmp_path / "d.zarr"))
    assert not (tmp_path / "d.zarr").exists(), "nothing half-written stays"


@pytest.mark.long
def test_xarray_opens_it(tmp_path):
    import xarray

    images = make_images()
    write_cache(tmp_path / "c.zarr", images, CLASSES, split="val", level="pooled")
    rois = xarray.open_zarr(tmp_path / "c.zarr", consolidated=False, chunks=None)
    assert rois["feature"].dims == ("roi", "stage", "channel", "y", "x") and rois["box"].dims == (
        "roi",
        "xyxy",
    )
    rois = rois.isel(roi=np.flatnonzero(rois["image"].values >= 0))
    assert rois["label"].dtype == np.int32
    np.testing.assert_array_equal(rois["label"].values, np.concatenate([r.labels for r in images]))


@pytest.mark.long
def test_xarray_opens_the_whole_tree(tmp_path):
    import xarray

    layers = [(np.ones((n, m), np.float32), np.ones(n, np.float32)) for m, n in ((98, 5), (5, 4), (4, 6))]
    write_cache(tmp_path / "c.zarr", make_images(), CLASSES, split="val", level="pooled", fc_layers=[layers])
    tree = xarray.open_datatree(tmp_path / "c.zarr", engine="zarr", consolidated=False)
    assert tree["detector/stage_0/weight_1"].dims == ("width_2", "width_1")
    assert [tree["detector/stage_0"].sizes[f"width_{i}"] for i in range(4)] == [98, 5, 4, 6]


def biggest_shard(folder: Path) -> Path:
    return max(folder.glob("c.*"), key=lambda file: file.stat().st_size)


def without_a_chunk(shard: bytes, chunks: int) -> bytes:
    """Returns the shard with an index that marks the first chunk as missing."""
    index = b"\xff" * 16 + shard[-16 * chunks + 12 : -4]
    return shard[: -16 * chunks - 4] + index + np.uint32(google_crc32c.value(index)).tobytes()


@pytest.mark.long
@pytest.mark.parametrize(("field", "name"), [("features", "feature"), ("labels", "label")])
def test_damage_is_found(tmp_path, small_shards, field, name):
    good = write_cache(tmp_path / "good", make_images(), CLASSES, split="val", level="pooled")
    array = zarr.open_group(good.url, mode="r")[name]
    chunks = array.shards[0] // array.chunks[0]
    for title, damage, message in (
        ("truncated", lambda data: data[:-100], "its index is damaged"),
        ("shortened", lambda data: data[20:], "checksums differ|its end is missing"),
        ("flipped bit", lambda data: b"x" + data[1:], "checksums differ"),
        ("flipped bit in the index", lambda data: data[:-9] + b"x" + data[-8:], "its index is damaged"),
        ("without a chunk", lambda data: without_a_chunk(data, chunks), "a chunk is missing"),
    ):
        shutil.copytree(tmp_path / "good", tmp_path / title)
        cache, shard = open_cache(tmp_path / title), biggest_shard(tmp_path / title / name)
        shard.write_bytes(damage(shard.read_bytes()))
        line = f"{title}/{name}: damaged shard: ({message})"
        with pytest.raises(CacheError, match=line):
            cache.read(field)
        with pytest.raises(CacheError, match=line):
            cache.take(field, np.arange(0, cache.offsets[-1], 2))
        shard.unlink()
        with pytest.raises(CacheError, match=f"{title}/{name}: damaged shard: .*No such file"):
            cache.read(field)
        with pytest.raises(CacheError, match=f"{title}/{name}: .* shards, the manifest needs"):
            open_cache(tmp_path / title)


@pytest.mark.long
def test_an_empty_shard_of_another_writer_is_no_data(tmp_path):
    """Chunk shapes and keys are the writer's, and it may have no manifest. Zarr has fill values for such a shard."""
    url = tmp_path / "c.zarr"
    expected = write_cache(url, make_images(), CLASSES, split="val", level="pooled").read("labels")
    group = zarr.open_group(url, mode="r+")
    for name in ("manifest", "manifest_crc32c"):
        del group.attrs[name]
    old, values = group["label"], group["label"][:]
    del group["label"]
    rows = (64, *values.shape[1:])
    serializer = zarr.codecs.ShardingCodec(
        chunk_shape=rows, codecs=[zarr.codecs.BytesCodec(), zarr.codecs.Crc32cCodec()]
    )
    options = {"fill_value": old.fill_value, "dimension_names": old.metadata.dimension_names, "compressors": None}
    chunks = {"chunks": (128, *values.shape[1:]), "serializer": serializer}
    group.create_array("label", shape=values.shape, dtype=values.dtype, **chunks, **options)[:] = values
    np.testing.assert_array_equal(open_cache(url).read("labels"), expected)
    (url / "label" / "c" / "1" / "0").write_bytes(b"")
    with pytest.raises(CacheError, match="c.zarr/label: damaged shard"):
        open_cache(url).read("labels")


@pytest.mark.long
def test_finite_half_floats():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for value in every:
        assert all_finite(np.array([0, value, -1], np.float16)) == np.isfinite(value)
    assert all_finite(every[np.isfinite(every)]) and all_finite(np.empty((0, 3), np.float16))
    late = np.zeros(3 * HALVES_AT_ONCE // 2, np.float16)
    late[-1] = -np.inf
    assert not all_finite(late)


@pytest.mark.long
@pytest.mark.parametrize("table", ["images/roi_start", "images/image_id", "classes/instance_count", "detector/stage_0"])
def test_damaged_tables_are_found(tmp_path, table):
    toy_cache(tmp_path / "c")
    chunk = next(file for file in (tmp_path / "c" / table).rglob("c/*") if file.is_file())
    content = chunk.read_bytes()
    for damage, message in (
        (lambda: chunk.unlink(), "its chunk is missing"),
        (lambda: chunk.write_bytes(b"x" + content[1:]), "damaged"),
    ):
        damage()
        with pytest.raises(CacheError, match=f"c/{table}.*{message}"):
            open_cache(tmp_path / "c").fc_layers()
        chunk.write_bytes(content)
    open_cache(tmp_path / "c").fc_layers()


def test_damaged_metadata_is_found(tmp_path):
    toy_cache(tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "label")
    with pytest.raises(CacheError, match=r"c: has no label"):
        open_cache(tmp_path / "c")
    (tmp_path / "c" / "zarr.json").write_text('{"zarr_format": 3,')
    with pytest.raises(CacheError, match=r"c/zarr.json: damaged"):
        open_cache(tmp_path / "c")


@pytest.mark.long
def test_the_fingerprint_covers_the_content(tmp_path):
    urls = {name: tmp_path / name for name in ("a", "b", "c")}
    seeds = {"a": 0, "b": 0, "c": 1}
    prints = {name: toy_cache(url, seed=seeds[name]).fingerprint for name, url in urls.items()}
    assert prints["a"] == prints["b"] != prints["c"]


def test_a_beginning_that_was_interrupted_is_replaced(tmp_path):
    zarr.create_group(tmp_path / "c", attributes={"creating": True})
    with pytest.raises(FileNotFoundError, match="only the beginning of one"):
        open_cache(tmp_path / "c")
    assert len(write_cache(tmp_path / "c", make_images(2), CLASSES, split="val", level="pooled")) == 2


def test_what_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no RoI cache there"):
        open_cache(tmp_path / "nothing")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(CacheError, match="other: format None, expected 'tailcal-roi-cache'"):
        open_cache(tmp_path / "other")
    write_cache(tmp_path / "new", make_images(3), CLASSES, split="val", level="pooled")
    zarr.open_group(tmp_path / "new", mode="r+").attrs["version"] = 2
    with pytest.raises(CacheError, match="new: format version 2, this library reads 1"):
        open_cache(tmp_path / "new")


@pytest.mark.long
def test_only_caches_are_overwritten(tmp_path):
    images, valuable = make_images(3), tmp_path / "home"
    valuable.mkdir()
    (valuable / "thesis.tex").write_text("years of work")
    zarr.create_group(tmp_path / "other")
    for folder in (valuable, tmp_path / "other"):
        for overwrite in (False, True):
            with pytest.raises(CacheError, match="is there already, and it is no RoI cache"):
                write_cache(folder, images, CLASSES, split="val", level="pooled", overwrite=overwrite)
    assert (valuable / "thesis.tex").exists()
    write_cache(tmp_path / "c", images, CLASSES, split="val", level="pooled")
    with pytest.raises(CacheError, match="something is there already"):
        write_cache(tmp_path / "c", images, CLASSES, split="val", level="pooled")
    assert len(write_cache(tmp_path / "c", images[:2], CLASSES, split="val", level="pooled", overwrite=True)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": np.full((4, 1, 2, 7, 7), np.nan, np.float32)},
            "image 5: features of RoI 0 are not finite",
        ),
        (
            {"features": np.full((4, 1, 2, 7, 7), 1e6, np.float32)},
            "not finite as float16 .largest magnitude 1000000",
        ),
        (
            {"features": np.zeros((4, 1, 3, 7, 7), np.float16)},
            r"features are \(1, 3, 7, 7\) per RoI, the cache stores",
        ),
        ({"features": None}, "image 5: features are None per RoI"),
        ({"masks": None}, "image 5: masks are None per RoI"),
        ({"boxes": np.zeros((4, K, 4), np.float32)}, "image 5: boxes are"),
        ({"image_id": 1000}, "image id 1000 repeats"),
        ({"labels": np.full((4, 1), 77, np.int32)}, "image 5: labels span 77…77, expected -1…5"),
        ({"labels": np.ones((4, 1), np.float32)}, "image 5: labels are float32, the cache stores int32"),
        ({"boxes": np.float32([[5, 5, 1, 9]] * 4)}, r"boxes of RoI 0 are not xyxy: \[5.0, 5.0, 1.0, 9.0\]"),
    ],
)
def test_rois_that_do_not_fit(tmp_path, change, message):
    images = [make_rois(1000, 3), dataclasses.replace(make_rois(5, 4), **change)]
    with pytest.raises(CacheError, match=message):
        write_cache(tmp_path / "c.zarr", images, CLASSES, split="val", level="pooled")
    assert not (tmp_path / "c.zarr").exists(), "nothing half-written stays"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"provenance": {"config": {"scale": [1.0, float("nan")]}}}, r"provenance: config: scale\[1\] is nan"),
        ({"detector": {"threshold": float("-inf")}}, "detector: threshold is -inf, expected a finite number"),
        ({"detector": {"mean": np.zeros(3)}}, "detector: mean is of type ndarray, expected a value that JSON has"),
        ({"stages": (float("nan"),)}, r"stages\[0\] is nan"),
    ],
)
def test_header_values_that_json_lacks(tmp_path, header, message):
    """Python writes NaN as a bare word, with which zarr.json is unreadable for tensorstore and for zarrita.js."""
    with pytest.raises(CacheError, match=f"c.zarr: {message}"):
        write_cache(tmp_path / "c.zarr", [make_rois(5, 4)], CLASSES, split="val", level="pooled", **header)
    assert not (tmp_path / "c.zarr").exists(), "nothing half-written stays"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros((3, 2), np.int32)}, r"image 5: labels has shape \(3, 2\), expected \(4, 1\)"),
        ({"logits": np.zeros((4, 6))}, r"image 5: logits has shape \(4, 6\), expected 3 axes"),
        ({"boxes": np.zeros((4, 2, 4))}, r"boxes has shape \(4, 2, 4\), expected \(4, 4\) or \(4, 5, 4\)"),
        ({"features": np.zeros((4, 3, 7))}, "features has shape"),
    ],
)
def test_rois_are_checked_when_made(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_rois(5, 4), **change)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES.drop(columns="name"), "class table lacks name"),
        (CLASSES.iloc[:3], "logits are of 5 classes, the class table has 3"),
        (CLASSES.iloc[::-1], "category_id must ascend"),
        (CLASSES.assign(instance_count=-1), "instance_count -1 is negative"),
        (CLASSES.iloc[:0], "class table is empty"),
    ],
)
def test_class_tables_that_do_not_fit(tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        write_cache(tmp_path / "c.zarr", make_images(2), classes, split="val", level="pooled")


def test_other_refusals(tmp_path):
    images = make_images(2)
    with pytest.raises(CacheError, match="level 'deep', expected one of pooled"):
        write_cache(tmp_path / "c.zarr", images, CLASSES, split="val", level="deep")
    with pytest.raises(CacheError, match="split 'test', expected 'train' or 'val'"):
        write_cache(tmp_path / "c.zarr", images, CLASSES, split="test", level="pooled")
    with pytest.raises(CacheError, match="level 'embedding' needs features of 3 axes, got 5"):
        write_cache(tmp_path / "c.zarr", images, CLASSES, split="val", level="embedding")
    with pytest.raises(CacheError, match="RoIs have 1 stages, the header 3"):
        write_cache(tmp_path / "c.zarr", images, CLASSES, split="val", level="pooled", stages=(0.5, 0.6, 0.7))
    with pytest.raises(CacheError, match="no images to write"):
        write_cache(tmp_path / "c.zarr", [], CLASSES, split="val", level="pooled")
    cache = write_cache(
        tmp_path / "d.zarr",
        [dataclasses.replace(r, features=None) for r in images],
        CLASSES,
        split="val",
        level="logits",
    )
    with pytest.raises(CacheError, match="has no features .level 'logits'.; it has proposals"):
        cache.read("features")
    with pytest.raises(KeyError, match="no image 12345"):
        cache.image(12345)
    with pytest.raises(IndexError, match="the cache has"):
        cache.take("labels", np.array([10**6]))


def test_every_field_has_a_column():
    arrays = {f.name for f in dataclasses.fields(RoIs)} - {"image_id", "height", "width", "flipped"}
    assert arrays == set(COLUMNS)


@pytest.mark.long
def test_commands_that_write_a_cache_name_the_next_one(tmp_path, caplog):
    caplog.set_level("INFO")
    cache = toy_cache(tmp_path / "train.zarr", images=3)
    file, again, embedding = (str(tmp_path / name) for name in ("train.h5", "again.zarr", "embedding.zarr"))
    assert main(["export", cache.url, file]) == 0
    assert main(["import", file, again]) == 0
    assert main(["convert", cache.url, embedding, "--level", "embedding"]) == 0
    found = [record.getMessage() for record in caplog.records if record.getMessage().startswith("next: ")]
    trained = [f"next: python -m calib.train --cache {url} --out head" for url in (again, embedding)]
    assert found == [f"next: python -m extract import {file} CACHE reads it back", *trained]
