"""`python -m fuse` and `python -m fuse sweep`: from a val cache and a classifier to detections, tables and a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calib.scoring import Original, Scorer, with_stage_average
from extract.cache.reader import RoICache
from fuse.commands.config import DETECTIONS_FILE, CacheConfig, Config, SweepConfig
from fuse.commands.inputs import load_annotations_of, load_classifier, open_val_cache, resolve_iou_types
from fuse.commands.manifest import new_manifest
from fuse.commands.outputs import Comparison, evaluate_all, write_results
from fuse.commands.paper_rows import BASELINE, paper_rows
from fuse.config import FusionConfig
from fuse.defaults import FIXED_AP_DETECTIONS_PER_CLASS
from fuse.fusion import Fusion
from fuse.inference import detect_many

MakeRows = Callable[[FusionConfig, Scorer | None, Original], Mapping[str, FusionConfig]]
"""(options of all rows, calibrated and original scorer) → rows by name."""


def run(config: Config) -> None:
    """Runs `python -m fuse`: one fusion, beside the original detector at the same threshold."""

    def rows(fusion: FusionConfig, *_: object) -> dict[str, FusionConfig]:
        return {"original": fusion.fusion(mode="original"), config.mode: fusion}

    _detect_and_report(config, rows, Comparison("original", config.mode), save=True)


def sweep(config: SweepConfig) -> None:
    """Runs `python -m fuse sweep`: every row of the paper's Tables 2, 4, 6 and 7."""
    candidate = "props-gt" if config.head is None and config.method is None else "rhead-cat"
    _detect_and_report(config, paper_rows, Comparison(BASELINE, candidate))


def _detect_and_report(config: CacheConfig, make_rows: MakeRows, comparison: Comparison, *, save: bool = False) -> None:
    """Detects and evaluates all rows; with `save`, writes the candidate's detections."""
    cache = open_val_cache(config.cache)
    config = resolve_iou_types(config, has_masks="masks" in cache.fields)
    calibrated = load_classifier(config, cache)
    annotations, scope = load_annotations_of(config.annotations, cache)
    manifest = new_manifest(config, cache_fingerprint=cache.fingerprint)
    fusions = _fusions(config, cache, calibrated, make_rows)
    detections = detect_many(cache, fusions, masks="segm" in config.iou_types, progress=True)
    tables = evaluate_all(config, annotations, detections, cache.classes)
    if save:
        detections[comparison.candidate].to_json(config.out / DETECTIONS_FILE)
    write_results(config, manifest, tables, scope, comparison)


def _fusions(config: CacheConfig, cache: RoICache, calibrated: Scorer | None, make_rows: MakeRows) -> dict[str, Fusion]:
    """Returns the rows with their scorers, which are made once, so that rows share their scores."""
    original = Original.from_description(cache.detector, config.stage_average)
    calibrated = calibrated and with_stage_average(calibrated, config.stage_average)
    fusion = config.fusion(stage_average=None)
    if config.fixed_ap:
        fusion = fusion.fusion(max_detections=None, max_detections_per_class=FIXED_AP_DETECTIONS_PER_CLASS)
    rows = make_rows(fusion, calibrated, original)
    return {name: Fusion.for_cache(cache, row, calibrated, original) for name, row in rows.items()}
