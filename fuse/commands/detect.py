"""`python -m fuse` and `python -m fuse sweep`: from a val cache and a classifier to detections, tables and a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from calib.scoring import Original, Scorer, with_stage_average
from extract.cache.reader import RoICache
from extract.utils.distributed import is_main_process
from fuse.commands.config import CacheConfig, Config, SweepConfig
from fuse.commands.datasets import resolve_annotations
from fuse.commands.folder import only_writer
from fuse.commands.inputs import (
    load_annotations_of,
    load_classifier,
    open_val_cache,
    resolve_iou_types,
    resolve_protocol,
    warn_of_tail,
)
from fuse.commands.manifest import new_manifest
from fuse.commands.masks import painted_masks
from fuse.commands.memory_plan import plan_threads
from fuse.commands.next_steps import after_detection
from fuse.commands.outputs import (
    Comparison,
    ReportSource,
    evaluate_all,
    write_results,
    write_unevaluated,
)
from fuse.commands.paper_rows import BASELINE, paper_rows
from fuse.commands.report_inputs import weight_norms
from fuse.config import FusionConfig
from fuse.defaults import FIXED_AP_DETECTIONS_PER_CLASS
from fuse.fusion import Fusion
from fuse.gallery import image_reader
from fuse.inference import detect_many

log = logging.getLogger(__name__)
MakeRows = Callable[[FusionConfig, Scorer | None, Original], Mapping[str, FusionConfig]]
"""(options of all rows, calibrated and original scorer) → rows by name."""


def run(config: Config) -> None:
    """Runs `python -m fuse`: one fusion, beside the original detector at the same threshold."""

    def rows(fusion: FusionConfig, *_: object) -> dict[str, FusionConfig]:
        return {"original": fusion.fusion(mode="original"), config.mode: fusion}

    with ExitStack() as lock:
        _detect_and_report(config, rows, Comparison("original", config.mode), lock, save=True)


def sweep(config: SweepConfig) -> None:
    """Runs `python -m fuse sweep`: every row of the paper's Tables 2, 4, 6 and 7."""
    candidate = "props-gt" if config.head is None and config.method is None else "rhead-cat"
    with ExitStack() as lock:
        _detect_and_report(config, paper_rows, Comparison(BASELINE, candidate), lock)


def _detect_and_report(
    config: CacheConfig, make_rows: MakeRows, comparison: Comparison, lock: ExitStack, *, save: bool = False
) -> None:
    """Detects and evaluates all rows; with `save`, writes the candidate's detections.

    Takes the lock of the folder once its inputs have proved readable.
    """
    cache, config = open_val_cache(config.cache), resolve_annotations(config)
    painted = painted_masks(config, config.iou_types, cache, config.annotations)
    if not is_main_process():
        return painted.assist() if painted else None
    calibrated = load_classifier(config, cache)
    annotations, scope = load_annotations_of(config.annotations, cache, config.strict)
    has_masks = painted is not None or (config.masks == "auto" and "masks" in cache.fields)
    config = resolve_iou_types(config, has_masks, annotations)
    annotated = bool(annotations["annotations"])
    if not (annotated or save):
        raise ValueError(f"{config.annotations}: has no annotations, so nothing can be evaluated")
    config = resolve_protocol(config, annotations)
    lock.enter_context(only_writer(config.out))
    manifest = new_manifest(config, cache_fingerprint=cache.fingerprint)
    fusions = _fusions(config, cache, calibrated, make_rows)
    if calibrated is not None:
        warn_of_tail(config, cache.classes["instance_count"])
    if not annotated:
        fusions = {comparison.candidate: fusions[comparison.candidate]}
    read_image = image_reader(annotations, config.images, cache.images["image_id"], config.allow_outside)
    painted = painted and painted.if_wanted(config.iou_types)
    if painted:
        painted.prepare()
    masks = "segm" in config.iou_types
    threads = plan_threads(cache, config, fusions, masks)
    detections = detect_many(cache, fusions, masks=masks, progress=True, threads=threads)
    if painted:
        detections = painted.attach(detections)
    if not annotated:
        write_unevaluated(config, manifest, detections[comparison.candidate], scope, annotations.text_ids)
        return
    tables = evaluate_all(config, annotations, detections, cache.classes, comparison.baseline)
    source = ReportSource(annotations, cache.classes, detections, read_image, weight_norms(cache, calibrated))
    saved = detections[comparison.candidate] if save else None
    write_results(config, manifest, tables, scope, comparison, source, after_detection(config, cache), saved)


def _fusions(config: CacheConfig, cache: RoICache, calibrated: Scorer | None, make_rows: MakeRows) -> dict[str, Fusion]:
    """Returns the rows with their scorers, which are made once, so that rows share their scores."""
    original = Original.from_description(cache.detector, config.stage_average)
    calibrated = calibrated and with_stage_average(calibrated, config.stage_average)
    fusion = config.fusion(stage_average=None)
    if config.fixed_ap:
        fusion = fusion.fusion(max_detections=None, max_detections_per_class=FIXED_AP_DETECTIONS_PER_CLASS)
    rows = make_rows(fusion, calibrated, original)
    return {name: Fusion.for_cache(cache, row, calibrated, original) for name, row in rows.items()}
