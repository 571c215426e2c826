"""A sweep over all methods without training and their grids against the ten rows of `python -m fuse sweep`.

    python -m benchmarks.speed.sweep

Both detect and evaluate masks in some images of Mini-LVIS's val cache, each from one read of it, with the scorers made
beforehand. `make demo RECIPE=paper` leaves the cache and the head in `data/plain`. Methods that need ground-truth boxes
of a train cache are left out; others are fitted to the val cache, since only their speed counts here. Times are
processor time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import tyro

from benchmarks.speed.measure import result, save, seconds, timing
from calib.head_io import load_head
from calib.posthoc import build_method
from calib.scoring import Original
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from fuse.commands.paper_rows import paper_rows
from fuse.config import FusionConfig
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.metrics import evaluate_rows
from fuse.fusion import Fusion
from fuse.inference import detect_many
from fuse.selection.grids import POSTHOC, settings_of

DATA = Path(__file__).parents[2] / "data"
ROUNDS = 3
TARGET = 4
"""Time of all rows, by that of ten."""
MODES: dict[str, dict[str, object]] = {"calibrated": {"mode": "calibrated"}, "cat": {"mode": "cat"}}


def main(images: int = 200, folder: Path = DATA / "plain", annotations: Path = DATA / "minilvis" / "val.json") -> None:
    """Times both and saves the result."""
    cache = open_cache(str(folder / "val.zarr"))
    cache = cache.without_images(cache.images["image_id"].to_numpy()[images:])
    dataset = load_annotations(annotations, cache.images["image_id"])
    few, many = ten_rows(cache, folder / "head"), all_rows(cache)
    run(cache, many | few, dataset)  # warms up
    pairs = []
    for _ in range(ROUNDS):
        times = [seconds(partial(run, cache, rows, dataset), clock=time.process_time) for rows in (many, few)]
        pairs.append((times[0], times[1]))
    case = f"detect and evaluate {len(many)} rows of all methods without training, {len(cache)} images of Mini-LVIS"
    save("sweep", [result(case, f"the {len(few)} rows of fuse sweep with a head", timing(pairs), "at_most", TARGET)])


def run(cache: RoICache, fusions: Mapping[str, Fusion], annotations: EvaluationDataset) -> None:
    """Detects and evaluates rows."""
    evaluate_rows(annotations, detect_many(cache, fusions), cache.classes)


def ten_rows(cache: RoICache, head_folder: Path) -> dict[str, Fusion]:
    """Returns the rows of `fuse sweep`."""
    original, head = Original.from_description(cache.detector), load_head(head_folder)
    rows = paper_rows(FusionConfig(), head, original)
    return {name: Fusion.for_cache(cache, row, head, original) for name, row in rows.items()}


def all_rows(cache: RoICache) -> dict[str, Fusion]:
    """Returns every setting of the methods without training, for all classes and for the tail."""
    rows = {}
    for setting in settings_of([name for name in POSTHOC if name != "fracal"], ()):
        scorer = build_method(setting.method, **setting.options).fit(cache)
        for name, changes in MODES.items():
            fusion = FusionConfig().fusion(**changes)
            rows[f"{setting.method} {setting.label} {name}"] = Fusion.for_cache(cache, fusion, scorer)
    return rows


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
