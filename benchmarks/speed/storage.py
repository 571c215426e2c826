"""RoI caches on disk: read, iterated, sampled, written and opened.

Reading is measured against `numpy.fromfile` of the same files, one after the other: bytes asked for per second, with
the files in the system's memory (warm) and dropped from it before each call (cold). Writing a block is measured
against `ndarray.tofile` of its features. Everything lies in a temporary folder, some 1 GB at a time.

    python -m benchmarks.speed.storage [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from benchmarks.speed import inputs, measure
from extract import RoICache, RoIs, open_cache, write_cache
from extract.cache.format import IMAGES_PER_BLOCK, Header
from extract.cache.writer import create_cache

TABLE = ["image_id", "height", "width", "flipped"]
REACH = 1.25
"""Times as long as `numpy.fromfile` for as many bytes: four fifths of its speed."""
ROUNDS = 7
FEATURE = (1, 256, 7, 7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the temporary files go; the disk that is measured")
    rows = []
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        for case in (writing, reading_val, reading_logits, sampling, opening):
            rows += case(Path(folder) / case.__name__)
            shutil.rmtree(Path(folder) / case.__name__)
    measure.keep("storage", rows)


def writing(folder: Path) -> list[dict[str, str]]:
    """A block of a val cache and one of a train cache, written again and again."""
    folder.mkdir()
    rows = []
    for name, rois in {"val block, 16 × 1,000 RoIs": 1000, "train block, 16 × 150 RoIs": 150}.items():
        images = [_image(i, rois, features=True) for i in range(IMAGES_PER_BLOCK)]
        table = pd.DataFrame([(i, 800, 1216, False) for i in range(IMAGES_PER_BLOCK)], columns=TABLE)
        header = Header("val", "pooled", (0.5,), {}, {})
        url = str(folder / f"{rois}.zarr")
        writer = create_cache(url, images[0], header, inputs.lvis_classes(), table, rois)

        def plain(images: Sequence[RoIs] = images) -> None:
            with (folder / "plain").open("wb") as file:
                for image in images:
                    image.features.tofile(file)

        pair = measure.compare(lambda w=writer, i=images: w.write_block(0, i), plain, ROUNDS)
        rows.append(measure.row(f"write_block, pooled {name}", "ndarray.tofile of the features", pair))
    return rows


def reading_val(folder: Path) -> list[dict[str, str]]:
    """A pooled val cache: all features, and image by image."""
    images = _Images(40, 1000, features=True)
    cache = write_cache(folder, images, inputs.lvis_classes(), split="val", level="pooled")
    _check(cache, images)
    return [
        *_both('read("features"), pooled', lambda: cache.read("features"), [folder / "feature"], keep=True),
        *_both("for rois in cache, pooled", lambda: _visit(cache), [folder]),
    ]


def reading_logits(folder: Path) -> list[dict[str, str]]:
    """A val cache of logits alone."""
    images = _Images(256, 1000, features=False)
    cache = write_cache(folder, images, inputs.lvis_classes(), split="val", level="logits")
    _check(cache, images)
    return [
        *_both('read("logits"), 1,230 classes', lambda: cache.read("logits"), [folder / "logit"], keep=True),
        *_both("for rois in cache, logits", lambda: _visit(cache), [folder]),
    ]


def sampling(folder: Path) -> list[dict[str, str]]:
    """What training steps take: half of the RoIs of 16 images, in no order."""
    images = _Images(400, 100, features=True)
    cache = write_cache(folder, images, inputs.lvis_classes(), split="train", level="pooled")
    _check(cache, images)
    rng = np.random.default_rng(0)

    def step() -> np.ndarray:
        drawn = rng.choice(len(cache), 16, replace=False)
        return rng.permutation(np.concatenate([100 * i + rng.choice(100, 50, replace=False) for i in drawn]))

    steps = [step() for _ in range(8)]

    def take() -> None:
        for rows in steps:
            cache.take("features", rows)

    asked = sum(map(len, steps)) * int(np.prod(FEATURE)) * 2
    measure.drop(measure.files_of(folder))
    before = measure.bytes_from_disk()
    take()
    print(
        f"take: {(measure.bytes_from_disk() - before) / asked:.2f} bytes read from the disk for each that is asked for"
    )
    return _both('take("features"), 16 images', take, [folder / "feature"], asked)


def opening(folder: Path) -> list[dict[str, str]]:
    """Many images of little: what costs are tables and lists of files."""
    images = _Images(29_992, 4, features=False, classes=4)
    write_cache(folder, images, inputs.lvis_classes()[:4], split="train", level="logits")

    def zarrs() -> list[int]:
        group = zarr.open_group(folder, mode="r")
        return [array.nchunks_initialized for _, array in group.arrays()]

    cache = open_cache(folder)
    labels = zarr.open_group(folder, mode="r")["label"]
    owned = zarr.open_group(folder, mode="r")["image"][:] >= 0
    assert np.array_equal(cache.read("labels"), labels[:][owned])
    opened = measure.compare(lambda: open_cache(folder), zarrs, 3)
    shown = measure.compare(lambda: repr(cache), lambda: labels[:], 3)
    return [
        measure.row("open_cache, 29,992 images", "Zarr, counting the chunks", opened),
        measure.row("repr(cache), 29,992 images", "Zarr, reading the labels", shown),
    ]


def _both(
    what: str, ours: Callable[[], object], folders: Sequence[Path], asked: int | None = None, keep: bool = False
) -> list[dict[str, str]]:
    """Rows for cold and for warm files. `asked` bytes are ours, where that is not all of them; `keep` holds all in
    memory at once, as ours does."""
    files = measure.files_of(*folders)
    share = 1 if asked is None else asked / sum(file.stat().st_size for file in files)

    def plain() -> object:
        return [np.fromfile(f, np.uint8) for f in files] if keep else [len(np.fromfile(f, np.uint8)) for f in files]

    rows = []
    for state, rounds in {"cold": 3, "warm": ROUNDS}.items():
        memory = measure.peak_memory(ours), measure.peak_memory(plain)
        times = []
        for _ in range(rounds):
            if state == "cold":
                measure.drop(files)
            own = measure.seconds(ours)
            if state == "cold":
                measure.drop(files)
            times.append((own, measure.seconds(plain) * share))
        times = np.array(times)
        pair = measure.Pair(*np.median(times, axis=0), float(np.median(times[:, 1] / times[:, 0])), *memory)
        rows.append(measure.row(f"{what}, {state}", "numpy.fromfile of as many bytes", pair, at_most=REACH))
    return rows


def _visit(cache: RoICache) -> None:
    for rois in cache:
        assert len(rois)


def _check(cache: RoICache, images: Sequence[RoIs]) -> None:
    for position in (0, len(cache) // 2, len(cache) - 1):
        for field in cache.fields:
            assert np.array_equal(getattr(cache[position], field), getattr(images[position], field)), field


class _Images(Sequence):
    """Images made when asked for."""

    def __init__(self, count: int, rois: int, features: bool, classes: int = 1230):
        self._count, self._made = count, [_image(i, rois, features, classes) for i in range(4)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> RoIs:
        if position >= self._count:
            raise IndexError
        return replace(self._made[position % len(self._made)], image_id=position)


def _image(seed: int, rois: int, features: bool, classes: int = 1230) -> RoIs:
    rng = np.random.default_rng(seed)
    boxes = inputs.proposals(rois, seed)
    return RoIs(
        image_id=seed,
        height=800,
        width=1216,
        proposals=boxes[:, None],
        boxes=boxes,
        logits=_halves(rng, (rois, 1, classes + 1)),
        objectness=rng.random(rois, np.float32),
        features=_halves(rng, (rois, *FEATURE)) if features else None,
        labels=rng.integers(0, classes + 1, (rois, 1)).astype(np.int32),
        ious=rng.random((rois, 1), np.float32),
        gt_ids=rng.integers(0, 10**6, (rois, 1)),
        is_gt=np.zeros(rois, bool),
    )


def _halves(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Half floats from 0 to 2, whose bits are as random as those of features."""
    bits = np.frombuffer(rng.bytes(2 * int(np.prod(shape))), np.uint16)
    return (bits & 0x3FFF).view(np.float16).reshape(shape)


if __name__ == "__main__":
    main()
