"""`python -m fuse evaluate` and `python -m fuse merge`: from files of LVIS results to tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuse.commands.config import EvaluateConfig, MergeConfig
from fuse.commands.datasets import resolve_annotations
from fuse.commands.inputs import load_classes, load_results, resolve_iou_types, resolve_protocol
from fuse.commands.manifest import files_fingerprint, new_manifest
from fuse.commands.outputs import Comparison, describe_results, evaluate_all, write_results, write_unevaluated
from fuse.detections import Detections
from fuse.evaluation.checks import with_categories
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.merge import check_options, have_masks, merge_detections

MERGED = "merged"
"""Name of the row of the merged results."""


def evaluate_file(config: EvaluateConfig) -> None:
    """Runs `python -m fuse evaluate`: evaluates one file."""
    detections = Detections.from_json(config.detections)
    config = resolve_annotations(config)
    annotations = load_annotations(config.annotations, strict=config.strict)
    config = resolve_iou_types(config, detections.rles is not None, annotations)
    if not annotations["annotations"]:
        raise ValueError(f"{config.annotations}: has no annotations, so nothing can be evaluated")
    config = resolve_protocol(config, annotations)
    tables = evaluate_all(config, annotations, {config.detections.name: detections}, load_classes(config))
    print(describe_results(config, tables, _scope(annotations, detections)))


def merge_files(config: MergeConfig) -> None:
    """Runs `python -m fuse merge`: merges files, and evaluates each beside the merged results."""
    options: dict[str, Any] = {
        "method": config.method,
        "iou_threshold": config.iou_threshold,
        "weights": config.weights or None,
    }
    check_options(len(config.detections), max_detections=config.max_detections, **options)
    config = resolve_annotations(config)
    classes = load_classes(config)
    annotations = with_categories(load_annotations(config.annotations, strict=config.strict), classes)
    results = load_results(config.detections, annotations)
    config = resolve_iou_types(config, config.method == "nms" and have_masks(results), annotations)
    config = resolve_protocol(config, annotations)
    manifest = new_manifest(config, detections_fingerprint=files_fingerprint(config.detections))
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"] if image["height"]}
    cap = None if config.fixed_ap else config.max_detections
    merged = merge_detections(list(results.values()), sizes=sizes, max_detections=cap, progress=True, **options)
    scope = _scope(annotations, merged)
    if not annotations["annotations"]:
        write_unevaluated(config, manifest, merged, scope)
        return
    tables = evaluate_all(config, annotations, {**results, MERGED: merged}, classes)
    write_results(config, manifest, tables, scope, Comparison(next(iter(results)), MERGED), merged)


def _scope(annotations: EvaluationDataset, detections: Detections) -> str:
    images = len(annotations["images"])
    return f"{images} images, {images - len(np.unique(detections.image_ids))} of them without detections"
