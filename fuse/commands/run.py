"""What `python -m fuse` and its commands do."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd

from calib.scoring import Original, Scorer
from extract.cache.reader import RoICache
from extract.utils.files import write_bytes
from fuse.commands.inputs import annotations_of, classes_of, load_head_of, open_val_cache, results_of, with_iou_types
from fuse.commands.manifest import RECORD, files_fingerprint, run_record
from fuse.commands.paper_rows import BASELINE, paper_rows
from fuse.config import DETECTIONS, Config, EvaluateConfig, EvaluationOptions, FusionOptions, MergeConfig, SweepConfig
from fuse.detections import Detections
from fuse.evaluation.lvis import Loaded, load_annotations
from fuse.evaluation.metrics import FIXED_PER_CLASS, evaluate_rows
from fuse.evaluation.tables import results_text
from fuse.inference import Row, detect_many
from fuse.merge import check_options, have_masks, merge

_LOG = logging.getLogger(__name__)


def run(config: Config) -> None:
    """`python -m fuse`: one combination, beside the original at the same threshold."""

    def rows(calibrated: Scorer | None, options: dict) -> dict[str, Row]:
        options = {"score_threshold": config.score_threshold, **options}
        rows = {"original": Row("original", **options)}
        return rows | {config.mode: Row(config.mode, calibrated, **options)}

    _detect_and_report(config, rows, baseline="original", shown=config.mode, save=True)


def sweep(config: SweepConfig) -> None:
    """`python -m fuse sweep`: every row of the paper's Tables 2, 4, 6 and 7."""
    shown = "rhead-cat" if config.head else "props-gt"
    _detect_and_report(config, lambda head, options: paper_rows(head, **options), baseline=BASELINE, shown=shown)


def evaluate_file(config: EvaluateConfig) -> None:
    """`python -m fuse evaluate`: a file of results."""
    detections = Detections.from_json(config.detections)
    config = with_iou_types(config, masks=detections.rles is not None)
    annotations = load_annotations(config.annotations)
    summary, per_class = _evaluate(config, annotations, {config.detections.name: detections}, classes_of(config))
    print(results_text(config, summary, per_class, _scope(annotations, detections)))


def merge_files(config: MergeConfig) -> None:
    """`python -m fuse merge`: files of results joined, beside each file alone."""
    options = {"method": config.method, "iou_threshold": config.iou_threshold, "weights": config.weights or None}
    options["max_detections"] = None if config.fixed else config.max_detections
    check_options(len(config.detections), **options)
    annotations = load_annotations(config.annotations)
    parts, classes = results_of(config.detections, annotations), classes_of(config)
    config = with_iou_types(config, masks=config.method == "nms" and have_masks(parts))
    record = run_record(config, detections_fingerprint=files_fingerprint(config.detections))
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    merged = merge(list(parts.values()), sizes=sizes, progress=True, **options)
    summary, per_class = _evaluate(config, annotations, {**parts, "merged": merged}, classes)
    text = results_text(config, summary, per_class, _scope(annotations, merged))
    merged.to_json(config.out / DETECTIONS)
    _write(config, record, summary, per_class, text, baseline=next(iter(parts)), shown="merged")


def _detect_and_report(config: FusionOptions, make_rows, *, baseline: str, shown: str, save: bool = False) -> None:
    cache = open_val_cache(config.cache)
    config = with_iou_types(config, masks="masks" in cache.fields)
    masks = "segm" in config.iou_types
    calibrated = load_head_of(config.head, cache, config.stage_average)
    annotations, scope = annotations_of(config.annotations, cache)
    record = run_record(config, cache_fingerprint=cache.fingerprint)
    detections = detect_many(cache, make_rows(calibrated, _row_options(config, cache)), masks=masks, progress=True)
    summary, per_class = _evaluate(config, annotations, detections, cache.classes)
    text = results_text(config, summary, per_class, scope)
    if save:
        detections[shown].to_json(config.out / DETECTIONS)
    _write(config, record, summary, per_class, text, baseline=baseline, shown=shown)


def _write(
    config: FusionOptions | MergeConfig,
    record: bytes,
    summary: pd.DataFrame,
    per_class: pd.DataFrame,
    text: str,
    *,
    baseline: str,
    shown: str,
) -> None:
    """Writes the tables, the report that compares two of their rows, and what they are of; prints the text."""
    report = _report_writer()
    write_bytes(config.out / "per_class.csv", per_class.to_csv().encode())
    if report is None:
        _LOG.info("no report.html: it needs the packages of tailcal[report]")
    else:
        title = text.splitlines()[0]
        report(config.out / "report.html", summary, per_class, config.edges, baseline, shown, title)
    write_bytes(config.out / "metrics.csv", summary.to_csv().encode())
    write_bytes(config.out / RECORD, record)
    print(text)


def _row_options(config: FusionOptions, cache: RoICache) -> dict:
    return {
        "original": Original.from_description(cache.detector, config.stage_average),
        "tail": config.tail,
        "iou_threshold": config.iou_threshold,
        "threshold": config.threshold,
        "scale": config.scale,
        "max_detections": None if config.fixed else config.max_detections,
        "per_class": FIXED_PER_CLASS if config.fixed else None,
    }


def _scope(annotations: Loaded, detections: Detections) -> str:
    bare = len(annotations["images"]) - len(np.unique(detections.image_ids))
    return f"{len(annotations['images'])} images, {bare} of them without detections"


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
        from fuse.evaluation.report import write_report
    except ModuleNotFoundError:  # matplotlib and Jinja2 are an extra
        return None
    return write_report
