"""Outputs are written by one process, replaced as a whole, and survive a kill at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import calib
import calib.train  # imports torch, which starts a process
from calib import head_io
from calib.head_types import build_head
from extract import CacheError, open_cache, write_cache
from extract.cache.creation import create_cache
from extract.cache.location import settle_cache, writing_place
from extract.cache.writer import CacheWriter
from extract.utils import folders
from extract.utils.files import replacing
from extract.utils.folders import partial_folder, put_in_place, settle
from extract.utils.locks import InUseError, one_writer, shared_folder
from fuse.commands.folder import new_results, only_writer
from tests.toy_cache import toy_cache


def fill(folder: Path, text: str, time: int) -> Path:
    """Makes a finished output of an age."""
    folder.mkdir()
    (folder / "data").write_text(text)
    (folder / "done").write_text(text)
    os.utime(folder / "done", (time, time))
    return folder


def is_finished(folder: Path) -> bool:
    return (folder / "done").exists()


def test_a_second_writer_is_refused_and_leaves_nothing(tmp_path):
    out = tmp_path / "deep" / "out"
    with one_writer(out):
        with pytest.raises(InUseError, match=rf"out: process {os.getpid()} on .* is writing it"), one_writer(out):
            pass
        with one_writer(tmp_path / "deep" / "other"):
            pass
    with one_writer(out):
        pass
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.process
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = "import os, sys; from extract.utils.locks import one_writer; lock = one_writer(sys.argv[1]); "
    code += "lock.__enter__(); os._exit(9)"
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert result.returncode == 9 and (tmp_path / ".out.lock").exists()
    with one_writer(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_caches_and_heads_that_are_being_written_are_refused(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=6)
    with one_writer(tmp_path / "out"):
        with pytest.raises(InUseError, match="out: process"):
            write_cache(tmp_path / "out", [cache[0]], cache.classes.reset_index(), split="train", level="pooled")
        with pytest.raises(InUseError, match="out: process"):
            calib.train_head(cache, out=str(tmp_path / "out"), head_type="linear", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    path = fill(tmp_path / "out", "old", 1)
    put_in_place(fill(partial_folder(path), "new", 2), path)
    assert (path / "data").read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("names", "settled", "left"),
    [
        ({"out": ("old", 1), "out.partial": ("new", 2)}, True, "new"),  # before the exchange
        ({"out.partial": ("old", 1), "out": ("new", 2)}, False, "new"),  # after it
        ({".out.deleted": ("old", 1), "out": ("new", 2)}, False, "new"),  # while the old one was deleted
        ({".out.deleted": ("old", 1), "out.partial": ("new", 2)}, True, "new"),  # without exchange, between two names
        ({".out.deleted": ("old", 1)}, False, "old"),
    ],
)
def test_a_killed_replacement_is_settled(tmp_path, names, settled, left):
    for name, (text, time) in names.items():
        fill(tmp_path / name, text, time)
    assert settle(tmp_path / "out", is_finished, "done") == settled
    assert (tmp_path / "out" / "data").read_text() == left and os.listdir(tmp_path) == ["out"]


def test_an_unfinished_replacement_is_kept(tmp_path):
    fill(tmp_path / "out", "old", 1)
    (tmp_path / "out.partial").mkdir()
    assert not settle(tmp_path / "out", is_finished, "done")
    assert sorted(os.listdir(tmp_path)) == ["out", "out.partial"]


def test_names_of_partial_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"out\.partial: names that end in \.partial"):
        partial_folder(tmp_path / "out.partial")


@pytest.mark.long
def test_overwriting_keeps_the_old_cache_until_the_new_one_is_whole(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=20)
    before, images = cache.fingerprint, [cache[i] for i in range(20)]
    classes, table = cache.classes.reset_index(), cache.images.drop(columns="roi_count")
    writer = create_cache(cache.url, images[0], cache.header, classes, table, 30, overwrite=True)
    writer.write_block(0, images[:16])
    assert open_cache(cache.url).fingerprint == before and not settle_cache(cache.url)
    place = writing_place(cache.url, True)
    with pytest.raises(CacheError, match="is not finished, 16 of 20 images are done"):
        open_cache(place)
    writer.write_block(1, images[16:])
    new = writer.finish()
    assert new.url == cache.url and not Path(place).exists() and new.level == cache.level

    class Broken(list):
        def __getitem__(self, index):
            if index == 17:
                raise RuntimeError("broken")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError):
        write_cache(cache.url, Broken(images), classes, split="train", level="pooled", overwrite=True)
    assert open_cache(cache.url).fingerprint == new.fingerprint and os.listdir(tmp_path) == ["c.zarr"]


def test_a_reader_beside_a_writer_has_the_old_cache_or_an_error(tmp_path, monkeypatch):
    url, seen = tmp_path / "c.zarr", []
    reader, write_block = toy_cache(url, images=40), CacheWriter.write_block
    old = [rois.features for rois in reader]

    def watched(self, block, rois):
        write_block(self, block, rois)
        seen.append(reader[block].features)

    monkeypatch.setattr(CacheWriter, "write_block", watched)
    toy_cache(url, images=40, seed=1)
    assert len(seen) == 3 and all((one == other).all() for one, other in zip(seen, old, strict=False))
    with pytest.raises(CacheError, match=f"{url}/feature: damaged shard: not the one that was"):
        _ = [rois.features for rois in reader]  # of chunks that are no longer there


def test_the_first_instant_of_a_killed_creation_is_no_obstacle(tmp_path):
    """Zarr was writing the first file, in the place of the cache as before, or beside it."""
    cache = toy_cache(tmp_path / "c.zarr", images=4)
    for name in ("a.zarr", "a.zarr.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"zarr.{'0' * 32}.partial").write_text("{")
    classes = cache.classes.reset_index()
    write_cache(tmp_path / "a.zarr", [cache[0]], classes, split="train", level="pooled", stages=cache.stages)
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "c.zarr"]


@pytest.mark.long
def test_files_of_killed_writers_are_removed_from_a_finished_cache(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=4)
    table = cache.images.drop(columns="roi_count")
    url = str(tmp_path / "d.zarr")
    writer = create_cache(url, cache[0], cache.header, cache.classes.reset_index(), table, 30)
    (tmp_path / "d.zarr" / "feature" / f"c.0.0.0.0.0.{'a' * 32}.partial").write_bytes(b"half")
    writer.write_block(0, [cache[i] for i in range(4)])
    assert writer.finish().stored_bytes() == cache.stored_bytes()
    assert not list((tmp_path / "d.zarr").rglob("*.partial"))


def test_results_take_the_place_of_old_ones_together(tmp_path):
    out = tmp_path / "out"
    for text in ("old", "new"):
        with only_writer(out), new_results(out) as folder:
            (folder / "metrics.csv").write_text(text)
            (folder / "run.json").write_text(text)
            assert text == "old" or (out / "metrics.csv").read_text() == "old"
    assert (out / "metrics.csv").read_text() == "new" and os.listdir(tmp_path) == ["out"]
    with pytest.raises(RuntimeError), new_results(out) as folder:
        (folder / "metrics.csv").write_text("half")
        raise RuntimeError
    assert (out / "metrics.csv").read_text() == "new" and os.listdir(tmp_path) == ["out"]
    with one_writer(out), pytest.raises(InUseError, match="out: process"), only_writer(out):
        pass


def test_results_beside_other_files_leave_these_alone(tmp_path):
    for name in ("notes.txt", "run.json", "metrics.csv", "errors.csv"):
        (tmp_path / name).write_text("old")
    with new_results(tmp_path) as folder:
        assert sorted(os.listdir(folder)) == ["notes.txt"]  # no manifest stands beside half of the results
        (folder / "run.json").write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "run.json"]


@pytest.mark.long
def test_a_head_is_replaced_as_a_whole(tmp_path, monkeypatch):
    cache = toy_cache(tmp_path / "c.zarr", images=4)
    old, new = (build_head(cache, "linear", 8, seed, {}) for seed in (0, 1))
    head, other = tmp_path / "head", tmp_path / "other"
    for folder in (head, other):
        calib.save_head(old, folder)
        (folder / "metrics.jsonl").write_text("{}")
    (other / "notes.txt").write_text("mine")
    original = head_io.write_head

    def write(*arguments):
        assert_same_weights(calib.load_head(head), old)
        original(*arguments)

    monkeypatch.setattr(head_io, "write_head", write)
    calib.save_head(new, head)
    monkeypatch.undo()
    calib.save_head(new, other)
    for folder in (head, other):
        assert_same_weights(calib.load_head(folder), new)
    assert sorted(os.listdir(head)) == ["config.json", "head.safetensors", "metrics.jsonl"]
    assert (other / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["c.zarr", "head", "other"]
    with one_writer(head), pytest.raises(InUseError, match="head: process"):
        calib.save_head(new, head)


def assert_same_weights(one, other):
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.long
def test_a_training_killed_between_weights_and_description_resumes(tmp_path):
    cache, out = toy_cache(tmp_path / "c.zarr", images=6), tmp_path / "out"
    options = {"head_type": "linear", "steps": 3, "classes_per_step": 4, "device": "cpu"}
    calib.train_head(cache, out=str(out), **options)
    weights = (out / "head.safetensors").read_bytes()
    (out / "config.json").unlink()
    (out / f"config.json.{'a' * 32}.partial").write_text("{")
    calib.train_head(cache, out=str(out), **options)
    assert (out / "head.safetensors").read_bytes() == weights
    assert not list(out.glob("*.partial"))
    (out / "checkpoint.safetensors").write_bytes(b"of the last steps")
    calib.train_head(cache, out=str(out), **options)
    assert not (out / "checkpoint.safetensors").exists(), "was left by a process that was killed after the last step"


def test_of_several_writers_the_first_removes_what_killed_ones_have_left(tmp_path):
    left = tmp_path / "masks" / f"000000.safetensors.{'a' * 32}.partial"
    with shared_folder(left.parent):
        left.touch()
        with shared_folder(left.parent):
            assert left.exists(), "another process may be writing it"
    with shared_folder(left.parent), shared_folder(left.parent):
        assert not left.exists()


def test_a_failed_replacement_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]
