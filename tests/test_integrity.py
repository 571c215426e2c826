"""Damage of a cache that valid checksums of chunks do not show: swapped, lost and older files, changed metadata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from extract import CacheError, open_cache
from extract.__main__ import main
from extract.cache.damage import find_damage, mark_damaged
from extract.cache.opening import open_unchecked
from extract.cache.reader import RoICache
from extract.cache.writer import resume_cache
from tests.toy_cache import change_attributes, toy_cache


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A train cache of two blocks, of which every array has one shard each."""
    return toy_cache(tmp_path_factory.mktemp("good") / "c.zarr")


@pytest.fixture
def copied(good, tmp_path):
    return Path(shutil.copytree(good.url, tmp_path / "c.zarr"))


def shards(url: Path, name: str) -> list[Path]:
    return sorted((url / name).glob("c.*"))


def swap(a: Path, b: Path) -> None:
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize(("name", "field"), [("feature", "features"), ("label", "labels"), ("box", "boxes")])
def test_swapped_shards_are_found_where_they_are_read(copied, capsys, name, field):
    swap(*shards(copied, name))
    cache = open_cache(str(copied))
    line = rf"c\.zarr/{name}: damaged shard: (not the one that was written|a chunk is missing).*\(c\.[01]"
    for read in (lambda: cache.read(field), lambda: cache.take(field, np.array([5])), lambda: cache[0]):
        with pytest.raises(CacheError, match=line):
            read()
    assert main(["verify", str(copied)]) == 1
    assert f"images are damaged: image 100 ({name}: damaged shard: " in capsys.readouterr().err


def test_verify_reads_every_image_once(copied, monkeypatch, capsys):
    read, original = [], RoICache.image_at

    def image_at(self, position, *rest):
        read.append(position)
        return original(self, position, *rest)

    monkeypatch.setattr(RoICache, "image_at", image_at)
    assert main(["verify", str(copied)]) == 0
    assert read == list(range(30)) and "logits equal to within" in capsys.readouterr().out


def test_swapped_owners_are_found(copied):
    swap(*shards(copied, "image"))
    assert len(list(find_damage(open_cache(str(copied))))) == 30


def test_swapped_shards_of_a_cache_without_manifest_are_found_by_verify(copied, capsys, caplog):
    """Caches of earlier versions have digests of images, but no checksums of chunks."""
    caplog.set_level("INFO")
    without_manifest(copied)
    assert main(["verify", str(copied)]) == 0
    assert caplog.text.count("an earlier version has written it, without a manifest") == 1
    swap(*shards(copied, "is_gt"))
    swap(*shards(copied, "feature"))
    assert main(["verify", str(copied)]) == 1
    assert "the arrays do not have the digest in images/digest" in capsys.readouterr().err


def without_manifest(url: Path) -> None:
    change_attributes(url)
    for name in ("checksums", "block_checksums"):
        shutil.rmtree(url / name)


@pytest.mark.parametrize("name", ["feature", "detector", "detector/stage_0", "classes", "images/digest"])
def test_a_lost_array_is_found(good, copied, name):
    shutil.rmtree(copied / name)
    with pytest.raises(CacheError, match=rf"c\.zarr: has no {name}"):
        open_cache(str(copied))


def test_every_changed_byte_of_metadata_is_found(good, copied):
    """The content read is the same, or the file is named."""
    rng, expected = np.random.default_rng(0), good.fingerprint
    for file in sorted(copied.rglob("zarr.json")):
        if "progress" in str(file) or "block_checksums" in str(file):
            continue
        content = file.read_bytes()
        for position in rng.choice(len(content), 3, replace=False).tolist():
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            try:
                assert open_cache(str(copied)).fingerprint == expected
            except CacheError as error:
                assert str(copied) in str(error)
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("zarr.json", '"complete"', '"comp1ete"'),
        ("zarr.json", '"version"', '"versi0n"'),
        ("zarr.json", '"stages"', '"stage5"'),
        ("classes/zarr.json", '"frequency"', '"frequenc1"'),
        ("is_gt/zarr.json", '"checksum"', '"check;um"'),
        ("box/zarr.json", '"zarr_format"', '"zarr"format"'),
        ("feature/zarr.json", "float16", "float64"),
        ("images/height/zarr.json", "zarr_format", "zarr_f0rmat"),
    ],
)
@pytest.mark.parametrize("manifest", [True, False])
def test_damaged_metadata_end_in_one_line(copied, file, old, new, manifest):
    if not manifest:
        without_manifest(copied)
    text = (copied / file).read_text()
    assert old in text
    (copied / file).write_text(text.replace(old, new))
    with pytest.raises(CacheError, match=r"c\.zarr"):
        open_cache(str(copied))[0]


def test_swapped_tables_are_found(copied):
    for part in ("zarr.json", "c/0"):
        swap(copied / "images/height" / part, copied / "images/width" / part)
    with pytest.raises(CacheError, match="images/(height|width)"):
        open_cache(str(copied))


def test_swapped_layers_are_found(good, copied):
    weights = sorted((copied / "detector/stage_0").glob("bias_*"))[:2]
    swap(*(weight / "c/0" for weight in weights))
    with pytest.raises(CacheError, match=r"detector/stage_0/bias_0: damaged"):
        open_cache(str(copied)).fc_layers()


@pytest.mark.long
def test_only_the_damaged_part_is_made_again(good, copied, capsys):
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    shards(copied, "feature")[1].unlink()
    cache = open_unchecked(str(copied))
    damages = list(find_damage(cache))
    assert {damage.position for damage in damages} == set(range(16, 30))
    mark_damaged(cache, damages)
    writer = resume_cache(str(copied))
    assert writer.pending() == [1]
    writer.write_block(1, [good[i] for i in range(16, 30)])
    assert writer.finish().fingerprint == good.fingerprint
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before
    assert main(["verify", str(copied)]) == 0


def test_newer_formats_are_named(copied):
    root = json.loads((copied / "zarr.json").read_text())
    root["attributes"]["version"] = 2
    (copied / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CacheError, match=r"format version 2, this library reads 1 \(written by a newer version\)"):
        open_cache(str(copied))
