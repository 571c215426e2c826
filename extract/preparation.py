"""What an extraction reads and checks before it computes anything."""

from __future__ import annotations

import logging
import platform
from contextlib import suppress
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from extract.cache.format import CacheError, Header, Projection, open_group
from extract.cache.location import refuse_same, settle_cache, writing_place
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.cache.writer import CacheWriter, resume_cache
from extract.class_order import find_class_map
from extract.config import Config
from extract.data.annotations import Annotations, read_annotations
from extract.data.image_files import check_namesakes
from extract.data.subset import with_classes
from extract.detectors import load_detector, registered_dataset
from extract.detectors.base import Detector, thresholds_of
from extract.detectors.class_map import map_detector
from extract.detectors.identity import PRECISION, precision_of
from extract.extractor import Extractor
from extract.projection import projection_sha256, projections_of
from extract.rois import POOLED_AFTER_CONVOLUTIONS
from extract.uses import describe_evaluation, describe_heads, describe_thresholds
from extract.utils.identity import flatten, refuse_changes

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
RUNTIME_FIELDS = {"out", "weights", "config_file", "annotations", "images", "train_annotations", "device", "batch_size"}
RUNTIME_FIELDS |= {"overwrite", "estimate", "strict", "classes", "class_order", "precision", "projection_from"}
RUNTIME_FIELDS |= {"allow_outside", "memory_limit"}
"""Options that do not change the cache's content, or whose files are recorded by their sha256, or whose effect is in
the detector's description."""


class Job(NamedTuple):
    """An extraction, ready to run.

    Attributes:
        extractor: images and detector.
        header: of the cache.
        classes: class table with the counts of the training set.
        projections: those of `Config.projection_from`, [] if none are taken over.
    """

    extractor: Extractor
    header: Header
    classes: pd.DataFrame
    projections: list[Projection]


def prepare(config: Config) -> Job:
    """Reads annotations and loads the detector.

    Raises ValueError or FileNotFoundError naming what is missing or does not fit.
    """
    config = resolve_files(config)
    options = {"strict": config.strict, "allow_outside": config.allow_outside}
    annotations = read_annotations(config.annotations, images=config.images, **options)
    train_annotations = annotations
    if config.train_annotations and config.train_annotations != config.annotations:
        train_annotations = read_annotations(config.train_annotations, strict=config.strict)
    if not len(train_annotations.ids):
        raise ValueError(f"{train_annotations.path}: has no annotations, of which the training instances are counted")
    if config.split != "val" and not len(annotations.ids):
        raise ValueError(f"{annotations.path}: has no annotations, which a {config.split} cache is made of")
    _check_categories(annotations, train_annotations)
    annotations = with_classes(annotations, train_annotations.classes)
    detector = load_detector(config)
    detector = map_detector(detector, find_class_map(detector, train_annotations, config))
    _check_masks(detector, config)
    extractor = Extractor(config, annotations, detector)
    assert config.images is not None, "resolve_files sets it"
    check_namesakes(config.images, annotations.image_ids, annotations.file_names, extractor.positions)
    _warn(extractor, train_annotations)
    _log_kind(annotations)
    projections = _taken_projections(config, extractor)
    log.info("%s", describe_heads(config.level, bool(extractor.fc_layers), detector.description, config.projection))
    own = thresholds_of(detector)
    if config.split == "train":  # of a val cache, `_warn` states it
        log.info("%s", describe_evaluation(detector.has_masks))
    elif own is not None:
        log.info("%s", describe_thresholds(own))
    provenance = _provenance(config, annotations, train_annotations, projections)
    split = "train" if config.split == "train" else "val"
    header = Header(split, config.level, detector.stages, _description(detector, config.level), provenance)
    return Job(extractor, header, train_annotations.classes, projections)


def find_existing(url: str, header: Header, overwrite: bool = False) -> RoICache | CacheWriter | None:
    """Returns the finished cache at `url`, or the writer of an unfinished one; None if there is none.

    With `overwrite` it is the one that the same command has begun before and that takes the place of that at `url`;
    None if there is none of this header.

    Raises CacheError if its header differs from `header`. Versions may differ: a newer library resumes what an older
    one has begun.
    """
    place, settled = writing_place(url, True), settle_cache(url)
    if not overwrite:
        return _find(url, header)
    for candidate in [url] * settled + [place] * (place != url):
        with suppress(CacheError):  # made with other options
            if (found := _find(candidate, header)) is not None:
                return found
    return None


def _find(url: str, header: Header) -> RoICache | CacheWriter | None:
    """Returns the cache at `url` or its writer as `find_existing` does."""
    try:
        attributes = open_group(url, "r").attrs.asdict()
    except FileNotFoundError:
        return None
    stored, current = _identity(Header.from_attributes(attributes)), _identity(header)
    refuse_changes(url, stored, _comparable(current, stored), CacheError)
    return open_cache(url) if attributes["complete"] else resume_cache(url)


def resolve_files(config: Config) -> Config:
    """Returns the config with names of datasets in the framework's catalog replaced by their files.

    Raises ValueError if the folder of images is not given and not in the catalog.
    """
    for field in ("annotations", "train_annotations"):
        name = getattr(config, field)
        dataset = None if name is None or name.exists() else registered_dataset(config.detector, str(name))
        if dataset is not None:
            changes: dict[str, Any] = {field: dataset[0]}
            if field == "annotations" and config.images is None:
                changes["images"] = dataset[1]
            config = replace(config, **changes)
    if config.images is None:
        raise ValueError(f"images: give the folder of the images that {config.annotations} names")
    return config


def _check_categories(annotations: Annotations, train_annotations: Annotations) -> None:
    """Raises ValueError unless the training file has all categories of the other file, with the same names."""
    columns = ["category_id", "name"]
    own, train = (set(map(tuple, a.classes[columns].to_numpy())) for a in (annotations, train_annotations))
    if missing := sorted(own - train):
        raise ValueError(
            f"categories of {annotations.path} and {train_annotations.path} differ in {len(missing)} entries, such as "
            f"{missing[0][0]} {missing[0][1]!r}, which only {annotations.path} has"
        )


def _check_masks(detector: Detector, config: Config) -> None:
    """Raises ValueError unless the detector has the masks to be kept."""
    if config.masks and not detector.has_masks:
        raise ValueError(f"masks: detector {config.detector} predicts no class-agnostic masks")


def _warn(extractor: Extractor, train_annotations: Annotations) -> None:
    """Warns of what is allowed but rarely intended."""
    config = extractor.config
    if config.split == "val" and train_annotations.sha256 == extractor.annotations.sha256:
        log.warning("training counts are taken from %s itself, the file evaluated on", train_annotations.path)
    if config.split != "train" and config.masks is None and not extractor.with_masks:
        log.warning(
            "no masks are kept: the detector has none that are class-agnostic; "
            "fuse paints masks with --detector, or evaluates boxes"
        )


def _log_kind(annotations: Annotations) -> None:
    """Logs whether the dataset is federated, as its fields tell, and what follows for its background RoIs."""
    kind, partial = "federated" if annotations.federated else "exhaustive", int((~annotations.exhaustive).sum())
    text = "%s: %s annotations; background RoIs are ignored in %d of %d images, where a class is annotated in part"
    log.info(text, annotations.path, kind, partial, len(annotations.exhaustive))


def _description(detector: Detector, level: str) -> dict[str, Any]:
    """Returns the detector's description without what does not concern this feature level."""
    unrelated = () if level in ("pooled", "hidden") else (POOLED_AFTER_CONVOLUTIONS,)
    return {key: value for key, value in detector.description.items() if key not in unrelated}


def _taken_projections(config: Config, extractor: Extractor) -> list[Projection]:
    """Returns the projections of `projection_from`. Raises ValueError unless they are of the same detector."""
    if config.projection_from is None:
        return []
    refuse_same(config.out, config.projection_from)
    return projections_of(
        config.projection_from, extractor.detector.description, extractor.fc_layers, config.projection
    )


def _provenance(
    config: Config, annotations: Annotations, train_annotations: Annotations, projections: list[Projection]
) -> dict[str, Any]:
    content = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in RUNTIME_FIELDS}
    content |= {"detector_options": list(config.detector_options)}
    # The key of caches that exist, so that their extraction resumes.
    content["images_per_class"] = content.pop("min_images_per_class")
    # Options that change nothing are left out, as in caches from before there were such options.
    if config.level != "hidden":
        del content["projection"]
    if config.rois_per_class is None:
        del content["rois_per_class"]
    if projections:
        content |= {"projection": len(projections[0].directions), "projection_sha256": projection_sha256(projections)}
    return {
        "config": content,
        "annotations_sha256": annotations.sha256,
        "train_annotations_sha256": train_annotations.sha256,
        "train_images": len(train_annotations.image_ids),
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "zarr": version("zarr")},
    }


def _identity(header: Header) -> dict[str, object]:
    """Returns the header as flat options, without versions."""
    options = flatten(asdict(header)).items()
    identity = {name.removeprefix("provenance.config."): value for name, value in options if "version" not in name}
    identity.pop(f"detector.settings.{PRECISION}", None)
    return identity | {PRECISION: precision_of(header.detector)}


def _comparable(current: dict[str, object], stored: dict[str, object]) -> dict[str, object]:
    """Returns `current` without what caches of older versions do not record.

    Weights files of the same tensors are the same detector, so the stored sha256 of the file is kept. Configs of the
    same content are the same as well, so the stored name, which is that of the file, is kept.
    """
    newer = ("detector.tensors_sha256", "detector.settings.", "provenance.train_images")
    comparable = {name: value for name, value in current.items() if name in stored or not name.startswith(newer)}
    for content, file in (("tensors_sha256", "weights_sha256"), ("config_sha256", "name")):
        content, file = f"detector.{content}", f"detector.{file}"
        if file in stored and stored.get(content) and stored[content] == current.get(content):
            comparable[file] = stored[file]
    return comparable
