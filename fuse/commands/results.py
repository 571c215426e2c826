"""`python -m fuse evaluate` and `python -m fuse merge`: from files of LVIS results to tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from extract.utils.distributed import is_main_process
from fuse.commands.datasets import resolve_annotations
from fuse.commands.folder import only_writer
from fuse.commands.inputs import (
    load_annotations_of_results,
    load_classes,
    load_results,
    resolve_iou_types,
    resolve_protocol,
)
from fuse.commands.manifest import files_fingerprint, new_manifest
from fuse.commands.masks import PaintedMasks, masks_of_results
from fuse.commands.next_steps import after_evaluation, after_merge
from fuse.commands.outputs import (
    Comparison,
    ReportSource,
    describe_results,
    evaluate_all,
    write_results,
    write_unevaluated,
)
from fuse.commands.results_config import EvaluateConfig, MergeConfig
from fuse.detections import Detections
from fuse.evaluation.checks import with_categories
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.tables import errors_text
from fuse.gallery import image_reader
from fuse.merge import check_options, have_masks, merge_detections

_LOG = logging.getLogger(__name__)
MERGED = "merged"
"""Name of the row of the merged results."""


def evaluate_file(config: EvaluateConfig) -> None:
    """Runs `python -m fuse evaluate`: evaluates one file."""
    config = resolve_annotations(config)
    painted = masks_of_results(config, config, config.cache)
    if not is_main_process():
        return painted.assist() if painted else None
    name, detections = config.detections.name, Detections.from_json(config.detections, strict=config.strict)
    if config.masks == "none":
        detections = replace(detections, rles=None)
    annotations = load_annotations_of_results(config)
    rows = {name: detections}
    painted = painted and painted.if_usable(rows, config.iou_types)
    config = resolve_iou_types(config, painted is not None or detections.rles is not None, annotations)
    if not annotations["annotations"]:
        raise ValueError(f"{config.annotations}: has no annotations, so nothing can be evaluated")
    config = resolve_protocol(config, annotations)
    painted = painted and painted.if_wanted(config.iou_types)
    rows = painted.attach(rows) if painted else rows
    classes = load_classes(config)
    tables = evaluate_all(config, annotations, rows, classes)
    print(describe_results(config, tables, _scope(annotations, detections)))
    if tables.errors is not None:
        print(f"\n{errors_text(tables.errors)}")
    _LOG.info("next: %s", after_evaluation(config))


def merge_files(config: MergeConfig) -> None:
    """Runs `python -m fuse merge`: merges files, and evaluates each beside the merged results."""
    with ExitStack() as lock:
        _merge_files(config, lock)


def _merge_files(config: MergeConfig, lock: ExitStack) -> None:
    """Merges as `merge_files` does; takes the lock of the folder once its inputs have proved readable."""
    options: dict[str, Any] = {
        "method": config.method,
        "iou_threshold": config.iou_threshold,
        "weights": config.weights or None,
    }
    check_options(len(config.detections), max_detections=config.max_detections, **options)
    config = resolve_annotations(config)
    painted = masks_of_results(config.mask_config(), config, config.cache)
    if not is_main_process():
        return painted.assist() if painted else None
    classes = load_classes(config)
    annotations = with_categories(load_annotations_of_results(config), classes)
    results = load_results(config.detections, annotations, config.strict)
    if config.masks == "none":
        results = {name: replace(one, rles=None) for name, one in results.items()}
    if painted and config.method == "nms":
        painted = painted.if_usable(results, config.iou_types)
    elif config.detector is None:  # the merged boxes are new
        painted = None
    config = resolve_iou_types(config, painted is not None or _have_masks(config, results), annotations)
    painted = painted and painted.if_wanted(config.iou_types)
    config = resolve_protocol(config, annotations)
    image_ids = (image["id"] for image in annotations["images"])
    read_image = image_reader(annotations, config.images, image_ids, config.allow_outside)
    lock.enter_context(only_writer(config.out))
    manifest = new_manifest(config, detections_fingerprint=files_fingerprint(config.detections))
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"] if image["height"]}
    options["max_detections"] = None if config.fixed_ap else config.max_detections
    rows = _merged(results, painted, sizes=sizes, progress=True, **options)
    scope = _scope(annotations, rows[MERGED])
    if not annotations["annotations"]:
        write_unevaluated(config, manifest, rows[MERGED], scope, annotations.text_ids)
        return
    tables = evaluate_all(config, annotations, rows, classes)
    comparison = Comparison(next(iter(results)), MERGED)
    source = ReportSource(annotations, classes, rows, read_image)
    write_results(config, manifest, tables, scope, comparison, source, after_merge(config), rows[MERGED])


def _merged(results: dict[str, Detections], painted: PaintedMasks | None, **options: Any) -> dict[str, Detections]:
    """Returns the results and, last, what `merge_detections` makes of them; paints the masks of those without."""
    if painted and options["method"] == "nms":  # merged detections keep their masks
        results = painted.attach(results)
    rows = {**results, MERGED: merge_detections(list(results.values()), **options)}
    if painted and options["method"] == "wbf":  # merged boxes are new
        rows = painted.attach(rows)
    return rows


def _have_masks(config: MergeConfig, results: Mapping[str, Detections]) -> bool:
    """Returns whether the merged results will have the masks of their files; says how else to get some."""
    if config.method == "nms" and have_masks(results):
        return True
    _LOG.info(
        "no masks: boxes are evaluated; to paint masks, add --cache of a detector, --detector, --detector-weights, "
        "--images and what else names it"
    )
    return False


def _scope(annotations: EvaluationDataset, detections: Detections) -> str:
    images = len(annotations["images"])
    return f"{images} images, {images - len(np.unique(detections.image_ids))} of them without detections"
