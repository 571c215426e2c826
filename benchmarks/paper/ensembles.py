"""Tables 9 and 10: ensembles of the detectors, calibrated and not, and multi-scale and flip testing.

Each detector's own detections, of one view or merged over views, are merged by per-class NMS, as `python -m fuse merge`
does. Views come from one cache each; one row of Table 10 detects live with the same views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

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

SINGLE, CALIBRATED, LIVE = "best single", "best single, calibrated", "best single, calibrated, multi-scale"
ENSEMBLE, BEST, ALL = "ensemble", "ensemble, best calibrated", "ensemble, all calibrated"
VIEWS, ALL_VIEWS = "multi-scale, best calibrated", "multi-scale, all calibrated"


class Member(NamedTuple):
    """A detector's detections, uncalibrated and calibrated, of its own view and merged over all views."""

    original: Detections
    calibrated: Detections
    original_views: Detections
    calibrated_views: Detections


def views_of(setup: Setup) -> list[View]:
    """Returns the views of multi-scale and flip testing: the detector's own size, flipped, then the setup's scales."""
    return [View(), View(flip=True), *(View(size=size) for size in setup.scales)]


def ensemble_table(setup: Setup) -> pd.DataFrame:
    """Returns Table 9, on val: every detector alone, then the ensembles."""
    members = detect_members(setup, "val")
    rows = {name: member.original for name, member in zip(setup.ensemble, members, strict=True)}
    return _evaluate(setup, "val", rows | ensembles(members))


def test_table(setup: Setup) -> pd.DataFrame:
    """Returns Table 10, on test, or on val where the annotations of test are not public."""
    split = setup.test_split
    members = detect_members(setup, split)
    best = members[0]
    rows = {SINGLE: best.original, CALIBRATED: best.calibrated, **ensembles(members)}
    rows[f"{LIVE} from caches"] = best.calibrated_views
    rows[f"{LIVE} live"] = detect_live(setup, setup.ensemble[0], split, views_of(setup))
    return _evaluate(setup, split, rows)


def detect_members(setup: Setup, split: str) -> list[Member]:
    """Returns the detections of the setup's ensemble, the best detector first.

    Files are checked before anything is computed.
    """
    check_inputs(setup, setup.ensemble, split, heads=[HeadOptions()], views=views_of(setup))
    return [detect_member(setup, name, split) for name in setup.ensemble]


def detect_member(setup: Setup, detector: str, split: str) -> Member:
    """Returns a detector's detections; of views other than its own only what remains after merging is kept."""
    original = FusionConfig(mode="original")
    configs = {"original": original, "calibrated": FusionConfig(mode="cat", tail=setup.tail(detector))}
    found = [detect(setup, detector, split, configs, view=view) for view in views_of(setup)]
    merged = {name: merge_detections([one[name] for one in found]) for name in configs}
    return Member(found[0]["original"], found[0]["calibrated"], merged["original"], merged["calibrated"])


def ensembles(members: Sequence[Member]) -> dict[str, Detections]:
    """Returns the merged rows; the best detector is the first."""
    best, *others = members
    parts = {
        ENSEMBLE: [member.original for member in members],
        BEST: [best.calibrated, *(member.original for member in others)],
        ALL: [member.calibrated for member in members],
        VIEWS: [best.calibrated_views, *(member.original_views for member in others)],
        ALL_VIEWS: [member.calibrated_views for member in members],
    }
    return {name: merge_detections(results) for name, results in parts.items()}


def detect_live(setup: Setup, detector: str, split: str, views: Sequence[View]) -> Detections:
    """Returns the calibrated detector's detections in the image files, without a cache."""
    live = CalibratedDetector(
        load(setup, detector), load_or_train(setup, detector), views=views, mode="cat", tail=setup.tail(detector)
    )
    annotations = read_annotations(setup.annotations[split])
    category_ids = open_or_extract(setup, detector, split).classes["category_id"].to_numpy(np.int64)
    found, rles = [], []
    for names in annotations.file_names:
        ((detections, masks),) = live.predict(find_image(setup.images[split], names))
        found.append(detections)
        rles += encode_bitmaps(masks) if masks is not None else []
    return replace(Detections.of_images(annotations.image_ids, found, category_ids), rles=rles or None)


def _evaluate(setup: Setup, split: str, rows: dict[str, Detections]) -> pd.DataFrame:
    return average_precision(setup, split, rows, setup.ensemble[0]).assign(
        detector="+".join(setup.ensemble), split=split
    )
