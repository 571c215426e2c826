"""What `python -m fuse` and its commands do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from calib.storage import load_head
from extract.annotations import read_annotations
from extract.bins import bin_counts
from extract.cache import RoICache, open_cache
from extract.files import write_bytes
from fuse.annotations import Loaded, check_categories, load_annotations
from fuse.config import Config, EvaluateConfig, EvaluationOptions, FusionOptions, SweepConfig
from fuse.detections import Detections
from fuse.evaluation import FIXED_PER_CLASS, evaluated_classes
from fuse.rows import Row, detect_rows
from fuse.sweep import BASELINE, evaluate_rows, paper_rows

RECORD = "run.json"
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
    if (config.cache is None) == (config.train_annotations is None):
        raise ValueError("give either --cache or --train-annotations, for the training counts of the classes")
    detections = Detections.from_json(config.detections)
    classes = open_cache(config.cache).classes if config.cache else read_annotations(config.train_annotations).classes
    annotations = load_annotations(config.annotations)
    summary, per_class = _evaluate(config, annotations, {config.detections.name: detections}, classes)
    bare = len(annotations["images"]) - len(np.unique(detections.image_id))
    print(
        _text(
            config,
            summary,
            per_class,
            f"{len(annotations['images'])} images, {bare} of them without detections",
        )
    )


def _detect_and_report(config: FusionOptions, make_rows, *, baseline: str, shown: str, save: bool = False) -> None:
    cache = open_cache(config.cache)
    calibrated = _load_head(config.head, cache)
    annotations, scope = _annotations_of(config.annotations, cache)
    if "segm" in config.iou_types and "masks" not in cache.fields:
        raise ValueError(f"{cache.url}: has no masks; use --iou-types bbox")
    record, report = _record(config, cache), _report_writer()
    detections = detect_rows(cache, make_rows(calibrated), masks="segm" in config.iou_types, progress=True)
    summary, per_class = _evaluate(config, annotations, detections, cache.classes)
    text = _text(config, summary, per_class, scope)
    if save:
        detections[shown].to_json(config.out / "detections.json")
    write_bytes(config.out / "per_class.csv", per_class.to_csv().encode())
    if report is None:
        _LOG.info("no report.html: it needs the packages of tailcal[report]")
    else:
        report(
            config.out / "report.html",
            summary,
            per_class,
            config.edges,
            baseline,
            shown,
            text.splitlines()[0],
        )
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


def _load_head(path: Path | None, cache: RoICache):
    """The head, refused if it was made for another detector than the cache's."""
    if path is None:
        return None
    head = load_head(path)
    head.check_cache(cache)
    return head


def _annotations_of(path: Path, cache: RoICache) -> tuple[Loaded, str]:
    """The annotations of exactly the cache's images, and a line that says which those are."""
    every = load_annotations(path)
    check_categories(every, cache.classes["category_id"].to_numpy())
    known, cached = {image["id"] for image in every["images"]}, set(cache.images["image_id"].tolist())
    if cached - known:
        raise ValueError(
            f"{path}: lacks {len(cached - known)} images of {cache.url}, image {min(cached - known)} first"
        )
    if known == cached:
        return every, f"{len(known)} images"
    line = f"{len(cached)} of the {len(known)} images of {path.name}: those of the cache"
    return load_annotations(path, cached), line


def _report_writer():
    try:
        from fuse.report import write_report
    except ModuleNotFoundError:  # matplotlib and Jinja2 are an extra
        return None
    return write_report


def _record(config: FusionOptions, cache: RoICache) -> bytes:
    """What the results are of, as JSON. Raises ValueError if the folder holds those of something else."""
    record = config.out / RECORD
    own = {name: str(value) for name, value in asdict(config).items() if name not in ("out", "overwrite")}
    own["cache_fingerprint"] = cache.fingerprint
    if record.exists() and not config.overwrite:
        try:
            found = msgspec.json.decode(record.read_bytes(), type=dict[str, str])
        except msgspec.DecodeError as error:
            raise ValueError(f"{record}: damaged: {error}") from None
        changed = [name for name in own | found if own.get(name) != found.get(name)]
        if changed:
            changes = ", ".join(f"{name} {found.get(name)} → {own.get(name)}" for name in changed)
            raise ValueError(f"{config.out}: holds results of another configuration ({changes}); use --overwrite")
    return msgspec.json.format(msgspec.json.encode(own))


def _text(config: EvaluationOptions, summary: pd.DataFrame, per_class: pd.DataFrame, scope: str) -> str:
    """The tables to print; the first line says what was evaluated."""
    iou_type, row = summary.index[0]
    first = per_class.loc[iou_type].loc[row]
    seen = evaluated_classes(first, config.edges)
    total = dict(zip(seen, [*bin_counts(first["instance_count"], config.edges), len(first)], strict=True))
    kind = "fixed AP" if config.fixed else f"{config.max_detections} detections per image"
    lines = [f"Evaluated on {scope}; {kind}; bins by training instances; figures in points (0-100)."]
    lines.append("Classes with ground truth: " + ", ".join(f"{n} {seen[n]} of {total[n]}" for n in seen) + ".")
    for iou_type in config.iou_types:
        table = summary.loc[iou_type].rename_axis(None)
        lines += [
            "",
            f"{'Mask' if iou_type == 'segm' else 'Box'} AP",
            table.to_string(float_format="{:.1f}".format),
        ]
    return "\n".join(lines)
