"""What `python -m fuse` and its commands do."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd

from extract.annotations import read_annotations
from extract.cache import open_cache
from extract.files import write_bytes
from fuse.annotations import Loaded, load_annotations
from fuse.config import Config, EvaluateConfig, EvaluationOptions, FusionOptions, SweepConfig
from fuse.detections import Detections
from fuse.evaluation import FIXED_PER_CLASS
from fuse.inputs import annotations_of, load_head_of, open_val_cache, with_iou_types
from fuse.record import RECORD, run_record
from fuse.rows import Row, detect_rows
from fuse.sweep import BASELINE, evaluate_rows, paper_rows
from fuse.text import results_text

_LOG = logging.getLogger(__name__)


def run(config: Config) -> None:
    """`python -m fuse`: one combination, beside the original at the same threshold."""

    def rows(calibrated) -> dict[str, Row]:
        options = {"score_threshold": config.score_threshold, **_row_options(config)}
        rows = {"original": Row("original", **options)}
        return rows | {config.mode: Row(config.mode, calibrated, **options)}

    _detect_and_report(config, rows, baseline="original", shown=config.mode, save=True)


def sweep(config: SweepConfig) -> None:
    """`python -m fuse sweep`: every row of the paper's Tables 2, 4 and 6."""
    shown = "rhead-cat" if config.head else "props-gt"
    _detect_and_report(config, lambda head: paper_rows(head, **_row_options(config)), baseline=BASELINE, shown=shown)


def evaluate_file(config: EvaluateConfig) -> None:
    """`python -m fuse evaluate`: a file of results."""
    detections = Detections.from_json(config.detections)
    config = with_iou_types(config, masks=detections.rle is not None)
    classes = open_cache(config.cache).classes if config.cache else read_annotations(config.train_annotations).classes
    annotations = load_annotations(config.annotations)
    summary, per_class = _evaluate(config, annotations, {config.detections.name: detections}, classes)
    bare = len(annotations["images"]) - len(np.unique(detections.image_id))
    scope = f"{len(annotations['images'])} images, {bare} of them without detections"
    print(results_text(config, summary, per_class, scope))


def _detect_and_report(config: FusionOptions, make_rows, *, baseline: str, shown: str, save: bool = False) -> None:
    cache = open_val_cache(config.cache)
    config = with_iou_types(config, masks="masks" in cache.fields)
    masks = "segm" in config.iou_types
    calibrated = load_head_of(config.head, cache)
    annotations, scope = annotations_of(config.annotations, cache)
    record, report = run_record(config, cache), _report_writer()
    detections = detect_rows(cache, make_rows(calibrated), masks=masks, progress=True)
    summary, per_class = _evaluate(config, annotations, detections, cache.classes)
    text = results_text(config, summary, per_class, scope)
    if save:
        detections[shown].to_json(config.out / "detections.json")
    write_bytes(config.out / "per_class.csv", per_class.to_csv().encode())
    if report is None:
        _LOG.info("no report.html: it needs the packages of tailcal[report]")
    else:
        title = text.splitlines()[0]
        report(config.out / "report.html", summary, per_class, config.edges, baseline, shown, title)
    write_bytes(config.out / "metrics.csv", summary.to_csv().encode())
    write_bytes(config.out / RECORD, record)
    print(text)


def _row_options(config: FusionOptions) -> dict:
    return {
        "tail": config.tail,
        "iou_threshold": config.iou_threshold,
        "threshold": config.threshold,
        "scale": config.scale,
        "max_detections": None if config.fixed else config.max_detections,
        "per_class": FIXED_PER_CLASS if config.fixed else None,
    }


def _evaluate(
    config: EvaluationOptions,
    annotations: Loaded,
    detections: Mapping[str, Detections],
    classes: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    return evaluate_rows(
        annotations,
        detections,
        classes,
        iou_types=config.iou_types,
        bins=config.edges,
        fixed=config.fixed,
        max_detections=config.max_detections,
        engine=config.engine,
        progress=True,
    )


def _report_writer():
    try:
        from fuse.report import write_report
    except ModuleNotFoundError:  # matplotlib and Jinja2 are an extra
        return None
    return write_report
