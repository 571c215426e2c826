"""Tables 9 and 10: ensembles of the detectors, calibrated and not, and multi-scale and flip testing.

Each detector's own detections, of one view or merged over views, are merged by per-class NMS, as `python -m fuse merge`
does. Views come from one cache each; one row of Table 10 detects live with the same views.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks.paper.inputs import HeadOptions, check_inputs, detect, load, load_or_train, open_or_extract
from benchmarks.paper.scores import average_precision
from benchmarks.paper.setups import Setup
from extract.data.annotations import read_annotations
from extract.data.image_files import find_image
from fuse.config import FusionConfig
from fuse.detections import Detections
from fuse.live import CalibratedDetector, View
from fuse.merge import merge_detections
from fuse.ops.masks import encode_bitmaps

SINGLE, CALIBRATED, BEST, ALL, VIEWS, ALL_VIEWS, LIVE = (
    "best single",
    "best single, calibrated",
    "ensemble, best calibrated",
    "ensemble, all calibrated",
    "multi-scale, best calibrated",
    "multi-scale, all calibrated",
    "best single, multi-scale",
)
UNCALIBRATED = "ensemble"


def views_of(setup: Setup) -> list[View]:
    """Returns the views of multi-scale and flip testing: the detector's own size, flipped, then the setup's scales."""
    return [View(), View(flip=True), *(View(size=size) for size in setup.scales)]


def ensemble_table(setup: Setup) -> pd.DataFrame:
    """Returns Table 9, on val: every detector alone, then the ensembles."""
    views = views_of(setup)
    check_inputs(setup, setup.ensemble, heads=[HeadOptions()], views=views)
    single = {name: by_view(setup, name, "val", views) for name in setup.ensemble}
    rows = {name: found["original"][0] for name, found in single.items()}
    return _evaluate(setup, "val", rows | ensembles(list(single.values())))


def test_table(setup: Setup) -> pd.DataFrame:
    """Returns Table 10, on test, or on val where the annotations of test are not public."""
    split = setup.test_split
    views, best = views_of(setup), setup.ensemble[0]
    check_inputs(setup, setup.ensemble, split, heads=[HeadOptions()], views=views)
    found = [by_view(setup, name, split, views) for name in setup.ensemble]
    rows = {SINGLE: found[0]["original"][0], CALIBRATED: found[0]["cat"][0], **ensembles(found)}
    rows[f"{LIVE}, from caches"] = merge_detections(found[0]["cat"])
    rows[f"{LIVE}, live"] = detect_live(setup, best, split, views)
    return _evaluate(setup, split, rows)


def by_view(setup: Setup, detector: str, split: str, views: Sequence[View]) -> dict[str, list[Detections]]:
    """Returns a detector's detections in each view, original and calibrated."""
    configs = {"original": FusionConfig(mode="original"), "cat": FusionConfig(mode="cat", tail=setup.tail(detector))}
    found = [detect(setup, detector, split, configs, view=view) for view in views]
    return {name: [one[name] for one in found] for name in configs}


def ensembles(found: Sequence[dict[str, list[Detections]]]) -> dict[str, Detections]:
    """Returns the merged rows; `found` has what `by_view` returns for each detector, the best detector first."""
    best, *others = found
    parts = {
        UNCALIBRATED: [one["original"][:1] for one in found],
        BEST: [best["cat"][:1], *(one["original"][:1] for one in others)],
        ALL: [one["cat"][:1] for one in found],
        VIEWS: [best["cat"], *(one["original"] for one in others)],
        ALL_VIEWS: [one["cat"] for one in found],
    }
    merged = {}
    for name, members in parts.items():
        merged[name] = merge_detections([merge_detections(one) if len(one) > 1 else one[0] for one in members])
    return merged


def detect_live(setup: Setup, detector: str, split: str, views: Sequence[View]) -> Detections:
    """Returns the calibrated detector's detections in the image files, without a cache."""
    live = CalibratedDetector(
        load(setup, detector), load_or_train(setup, detector), views=views, mode="cat", tail=setup.tail(detector)
    )
    annotations = read_annotations(setup.annotations[split])
    category_ids = open_or_extract(setup, detector, split).classes["category_id"].to_numpy(np.int64)
    parts = []
    for image_id, names in zip(annotations.image_ids.tolist(), annotations.file_names, strict=True):
        ((found, masks),) = live.predict(find_image(setup.images[split], names))
        rles = encode_bitmaps(masks) if masks is not None else []
        parts.append(
            (np.full(len(found.scores), image_id), category_ids[found.labels], found.scores, found.boxes, rles)
        )
    *columns, every = zip(*parts, strict=True)
    return Detections(*map(np.concatenate, columns), [rle for rles in every for rle in rles])


def _evaluate(setup: Setup, split: str, rows: dict[str, Detections]) -> pd.DataFrame:
    return average_precision(setup, split, rows, setup.ensemble[0]).assign(
        detector="+".join(setup.ensemble), split=split
    )
