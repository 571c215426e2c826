"""RoI caches on disk: writing, reading, sampling and opening.

    python -m benchmarks.speed.storage [--folder DIR] [--case reading_hidden]

Baseline of reading is `numpy.fromfile` of the same files one after the other, for as many bytes, with the files in the
system's page cache (warm) or evicted from it before each call (cold). Baseline of writing a block is `ndarray.tofile`
of its features. Everything is in a temporary folder, about 1 GB at a time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from benchmarks.speed import inputs
from benchmarks.speed.measure import (
    Result,
    compare,
    disk_bytes_read,
    drop_page_cache,
    list_files,
    peak_memory,
    result,
    save,
    seconds,
    size,
    timing,
)
from benchmarks.speed.traincache import TrainCache
from extract import RoICache, RoIs, open_cache, write_cache
from extract.cache.creation import create_cache
from extract.cache.derived import UpperLayers
from extract.cache.format import IMAGES_PER_BLOCK, Header, row_bytes, row_shapes

READ_TARGET = 1.25
"""Upper bound of the time of reading, relative to that of `numpy.fromfile`: four fifths of its speed."""
SIZE_TARGET = 1 / 8
"""Upper bound of the bytes of a RoI at level hidden, relative to level pooled."""
COLD_ROUNDS, ROUNDS = 3, 7
FEATURE_SHAPE = (1, 256, 7, 7)


def main() -> None:
    """Times all cases, each in a folder of its own, and saves the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="what to time; everything by default")
    parser.add_argument("--folder", help="where temporary files are written; decides which disk is measured")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "case"
        for case in [options.case] if options.case else CASES:
            results += CASES[case](folder)
            shutil.rmtree(folder)
    save("storage", results)


def time_writing(folder: Path) -> list[Result]:
    """Times writing a block of a val cache and of a train cache."""
    folder.mkdir()
    results = []
    for block, rois in {"val block, 16 × 1,000 RoIs": 1000, "train block, 16 × 150 RoIs": 150}.items():
        images = [make_image(i, rois, features=True) for i in range(IMAGES_PER_BLOCK)]
        columns = ["image_id", "height", "width", "flipped"]
        table = pd.DataFrame([(i, *inputs.SIZE, False) for i in range(IMAGES_PER_BLOCK)], columns=columns)
        header = Header("val", "pooled", (0.5,), {}, {})
        writer = create_cache(str(folder / f"{rois}.zarr"), images[0], header, inputs.lvis_classes(), table, rois)
        timed = compare(partial(writer.write_block, 0, images), partial(_tofile, folder / "plain", images), ROUNDS)
        results.append(result(f"write_block, pooled {block}", "ndarray.tofile of the features", timed))
    return results


def time_reading_features(folder: Path) -> list[Result]:
    """Times reading a pooled val cache: all features at once, and image by image."""
    cache = _write(folder, Images(40, 1000, features=True), "val")
    read, files = partial(cache.read, "features"), list_files(folder / "feature")
    return [
        *time_reading('read("features"), pooled', read, files, baseline_keeps=True),
        *time_reading("for rois in cache, pooled", partial(_iterate, cache), list_files(folder)),
    ]


def time_reading_hidden(folder: Path) -> list[Result]:
    """Times reading a val cache of level hidden, whose logits are left out, and compares its size with a pooled one.

    Sizes are before compression, of 1,000 RoIs, and without masks, which would be the same in both.
    """
    detector = TrainCache("hidden", images=1)
    images = Images(40, 1000, features=True)
    width, layers = detector.fields["features"][-1], UpperLayers([detector.fc_layers()[1:]])
    hidden = Images(40, 1000, features=True)
    for i, one in enumerate(hidden.made):
        features = np.asarray(one.features).reshape(1000, 1, -1)[..., :width]
        hidden.made[i] = replace(one, features=features, logits=layers.logits(features))
    options = {"fc_layers": [detector.fc_layers()], "projections": detector.projections}
    cache = write_cache(str(folder), hidden, inputs.lvis_classes(), split="val", level="hidden", **options)
    own, pooled = (1000 * row_bytes(shapes) for shapes in (cache.fields, row_shapes(images[0])))
    return [
        size("val cache of level hidden, 1,000 RoIs of 256 channels", "level pooled", own, pooled, SIZE_TARGET),
        *time_reading("for rois in cache, hidden", partial(_iterate, cache), list_files(folder)),
    ]


def time_reading_logits(folder: Path) -> list[Result]:
    """Times reading a val cache without features: all logits at once, and image by image."""
    cache = _write(folder, Images(256, 1000, features=False), "val")
    read, files = partial(cache.read, "logits"), list_files(folder / "logit")
    return [
        *time_reading('read("logits"), 1,230 classes', read, files, baseline_keeps=True),
        *time_reading("for rois in cache, logits", partial(_iterate, cache), list_files(folder)),
    ]


def time_sampling(folder: Path) -> list[Result]:
    """Times reading the features of training steps: half of the RoIs of 16 images, in random order."""
    cache = _write(folder, Images(400, 100, features=True), "train")
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(8):
        images = rng.choice(len(cache), 16, replace=False)
        steps.append(rng.permutation(np.concatenate([100 * i + rng.choice(100, 50, replace=False) for i in images])))

    def take() -> None:
        for rows in steps:
            cache.take("features", rows)

    taken_bytes = sum(map(len, steps)) * int(np.prod(FEATURE_SHAPE)) * 2
    drop_page_cache(list_files(folder))
    before = disk_bytes_read()
    take()
    print(f"take: {(disk_bytes_read() - before) / taken_bytes:.2f} bytes read from the disk per byte taken")
    return time_reading('take("features"), 16 images', take, list_files(folder / "feature"), taken_bytes)


def time_opening(folder: Path) -> list[Result]:
    """Times opening a cache of many images with few RoIs: the cost is in tables and file lists."""
    images = Images(29_992, 4, features=False, classes=4)
    classes = inputs.lvis_classes()[:4]
    cache = write_cache(str(folder), images, classes, split="train", level="logits")
    group = zarr.open_group(folder, mode="r")
    labels = group["label"]
    assert np.array_equal(cache.read("labels"), labels[:][group["image"][:] >= 0])

    def count_chunks() -> list[int]:
        group = zarr.open_group(folder, mode="r")
        return [array.nchunks_initialized for _, array in group.arrays()]

    opened = compare(lambda: open_cache(str(folder)), count_chunks, 3)
    shown = compare(lambda: repr(cache), lambda: labels[:], 3)
    return [
        result("open_cache, 29,992 images", "Zarr, counting the chunks", opened),
        result("repr(cache), 29,992 images", "Zarr, reading the labels", shown),
    ]


def time_reading(
    case: str,
    read: Callable[[], object],
    files: Sequence[Path],
    read_bytes: int | None = None,
    baseline_keeps: bool = False,
) -> list[Result]:
    """Times reading cold and warm files.

    Args:
        case: name, to which the state is added.
        read: reads from the cache.
        files: what the baseline reads.
        read_bytes: bytes that `read` takes where that is not all of the files; the baseline counts for that share.
        baseline_keeps: the baseline holds all files in memory at once, as `read` does.
    """
    share = 1 if read_bytes is None else read_bytes / sum(file.stat().st_size for file in files)

    def fromfile() -> object:
        if baseline_keeps:
            return [np.fromfile(file, np.uint8) for file in files]
        return [len(np.fromfile(file, np.uint8)) for file in files]

    results = []
    for state, rounds in {"cold": COLD_ROUNDS, "warm": ROUNDS}.items():
        memory, baseline_memory = peak_memory(read), peak_memory(fromfile)
        evicted = files if state == "cold" else ()
        pairs = [(_seconds(read, evicted), _seconds(fromfile, evicted) * share) for _ in range(rounds)]
        timed = timing(pairs, memory, baseline_memory)
        baseline = "numpy.fromfile of as many bytes"
        results.append(result(f"{case}, {state}", baseline, timed, "at_most", READ_TARGET))
    return results


class Images(Sequence[RoIs]):
    """Made-up images that repeat every four."""

    def __init__(self, count: int, rois: int, features: bool, classes: int = 1230) -> None:
        self.made, self._count = [make_image(i, rois, features, classes) for i in range(4)], count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> RoIs:  # type: ignore[override]  # no slices
        if position >= self._count:
            raise IndexError(position)
        return replace(self.made[position % len(self.made)], image_id=position)


def make_image(seed: int, rois: int, features: bool, classes: int = 1230) -> RoIs:
    """Makes RoIs whose values are as random as a detector's, so that they compress no better."""
    rng = np.random.default_rng(seed)
    return inputs.make_rois(
        seed,
        inputs.proposals(rois, seed),
        _random_halves(rng, (rois, classes + 1)),
        objectness=rng.random(rois, np.float32),
        features=_random_halves(rng, (rois, *FEATURE_SHAPE)) if features else None,
        labels=rng.integers(0, classes + 1, (rois, 1)).astype(np.int32),
        ious=rng.random((rois, 1), np.float32),
        gt_ids=rng.integers(0, 10**6, (rois, 1)),
    )


def _write(folder: Path, images: Images, split: str) -> RoICache:
    """Writes a cache and checks three of its images."""
    level = "logits" if images[0].features is None else "pooled"
    cache = write_cache(str(folder), images, inputs.lvis_classes(), split=split, level=level)
    for position in (0, len(cache) // 2, len(cache) - 1):
        for field in cache.fields:
            assert np.array_equal(getattr(cache[position], field), getattr(images[position], field)), field
    return cache


def _tofile(path: Path, images: Sequence[RoIs]) -> None:
    with path.open("wb") as file:
        for image in images:
            np.asarray(image.features).tofile(file)


def _iterate(cache: RoICache) -> None:
    for rois in cache:
        assert len(rois)


def _seconds(function: Callable[[], object], evicted: Sequence[Path]) -> float:
    """Returns the seconds of a call after these files have left the page cache."""
    drop_page_cache(evicted)
    return seconds(function)


def _random_halves(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Makes float16 from 0 to 2 with random bits."""
    bits = np.frombuffer(rng.bytes(2 * int(np.prod(shape))), np.uint16)
    return (bits & 0x3FFF).view(np.float16).reshape(shape)


CASES: dict[str, Callable[[Path], list[Result]]] = {
    "writing": time_writing,
    "reading_features": time_reading_features,
    "reading_hidden": time_reading_hidden,
    "reading_logits": time_reading_logits,
    "sampling": time_sampling,
    "opening": time_opening,
}

if __name__ == "__main__":
    main()
