"""Tables 2, 4, 5, 6, 7, 8 and 11: AP of detectors whose scores are combined in several ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from benchmarks.paper.figures import MODEL_COLUMNS
from benchmarks.paper.inputs import HeadOptions, check_inputs, detect, open_or_extract
from benchmarks.paper.setups import Setup
from benchmarks.tables import BINS, FREQUENCIES
from fuse.commands.paper_rows import MODES
from fuse.config import FusionConfig
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate_rows
from fuse.scores import UNCALIBRATED_MODES, FusionMode

METRICS = [*BINS, *FREQUENCIES]
"""Columns of every measured row."""
IOU_TYPES = ("bbox", "segm")
"""Of `MODEL_COLUMNS`."""


class Row(NamedTuple):
    """A row of a table: a detector, and how its scores are combined; `tail` None is the detector's."""

    name: str
    detector: str
    mode: FusionMode = "original"
    score_threshold: float = 0.0
    tail: float | None = None
    head: HeadOptions | None = None

    def config(self, setup: Setup) -> FusionConfig:
        """Returns the fusion's options."""
        tail = setup.tail(self.detector) if self.tail is None else self.tail
        return FusionConfig(mode=self.mode, score_threshold=self.score_threshold, tail=tail)


BASELINE = Row("mrcnn-r50", "plain")
TABLES: dict[str, list[Row]] = {
    "2": [Row("mrcnn-r50-thr", "plain", score_threshold=0.05), BASELINE],
    "4": [BASELINE, Row("props-gt", "plain", "props-gt")],
    "5": [Row("cascaded-mrcnn", "cascade"), Row("htc", "htc")],
    "6": [BASELINE, *(Row(name, "plain", mode) for name, mode in MODES.items())],  # type: ignore[arg-type]
    "7": [
        Row("htc-x101", "htc"),
        Row("htc-x101, calibration", "htc", "cat", tail=10),
        Row("htc-x101, calibration to 100", "htc", "cat", tail=100),
        Row("htc-x101-ms-dcn", "htc_dcn"),
        Row("htc-x101-ms-dcn, calibration", "htc_dcn", "cat", tail=10),
    ],
    "8": [
        BASELINE,
        Row("mrcnn-r50, img-sample", "rfs"),
        Row("mrcnn-r50, calibration", "plain", "cat"),
        Row("mrcnn-r50, img-sample and calibration", "rfs", "cat"),
        Row("htc-x101", "htc_best"),
        Row("htc-x101, img-sample", "htc_dcn_rfs"),
        Row("htc-x101, calibration", "htc_best", "cat"),
    ],
    "11": [
        Row("from scratch, no semantic branch", "htc_scratch_no_semantic"),
        Row("pre-trained, no semantic branch", "htc_no_semantic"),
        Row("pre-trained, semantic branch", "htc_semantic"),
    ],
}


def score_table(setup: Setup, table: str) -> pd.DataFrame:
    """Returns a table of `TABLES`: columns row, detector, then `METRICS`; of Table 5 AP of boxes and of masks."""
    rows = available(setup, TABLES[table])
    if table != "5":
        return measure(setup, rows)
    kinds = {
        name: measure(setup, rows, iou_type)["AP"] for name, iou_type in zip(MODEL_COLUMNS, IOU_TYPES, strict=True)
    }
    return pd.DataFrame({"row": [row.name for row in rows], "detector": [row.detector for row in rows], **kinds})


def available(setup: Setup, rows: Iterable[Row]) -> list[Row]:
    """Returns the rows with the setup's own detectors; prints the rows of detectors that it does not have."""
    found = []
    for row in rows:
        detector = setup.aliases.get(row.detector, row.detector)
        if detector in setup.detectors:
            found.append(row._replace(detector=detector))
        else:
            print(f"{setup.name} has no detector {detector}: row {row.name!r} is left out")
    return found


def measure(setup: Setup, rows: Sequence[Row], iou_type: str = "segm") -> pd.DataFrame:
    """Returns the AP of rows on val: columns row, detector, then `METRICS`.

    Files are checked before anything is computed. Each detector's cache is read once.
    """
    by_detector = {one: {row.name: row for row in rows if row.detector == one} for one in (r.detector for r in rows)}
    for detector, own in by_detector.items():
        needed = [row.head or HeadOptions() for row in own.values() if row.mode not in UNCALIBRATED_MODES]
        check_inputs(setup, [detector], heads=needed)
    tables = []
    for detector, own in by_detector.items():
        heads = {name: row.head for name, row in own.items() if row.head is not None}
        found = detect(setup, detector, "val", {name: row.config(setup) for name, row in own.items()}, heads=heads)
        tables.append(average_precision(setup, "val", found, detector, iou_type))
    table = pd.concat(tables).set_index("row").loc[[row.name for row in rows]]
    return table.reset_index()


def average_precision(
    setup: Setup, split: str, found: Mapping[str, Detections], detector: str, iou_type: str = "segm"
) -> pd.DataFrame:
    """Returns AP of detections, by name, over all images of a split: columns row, detector, then `METRICS`.

    Classes and their training counts are those of the detector's cache.
    """
    classes = open_or_extract(setup, detector, split).classes
    annotations = load_annotations(setup.annotations[split])
    summary = evaluate_rows(annotations, found, classes, iou_types=[iou_type]).summary.loc[iou_type]
    return summary[METRICS].rename_axis("row").reset_index().assign(detector=detector)[["row", "detector", *METRICS]]
