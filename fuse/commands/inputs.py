"""Opens the inputs of the commands and checks that they belong together: cache, classifier, annotations, results."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from calib.heads import Head
from calib.posthoc import Posthoc, build_method
from calib.scoring import Scorer
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.data.annotations import read_annotations
from extract.detectors.base import Detector
from extract.detectors.identity import check_same_detector
from fuse.commands.live_config import LiveConfig
from fuse.commands.results_config import ResultsConfig
from fuse.config import ClassifierConfig, EvaluationConfig, FusionConfig
from fuse.defaults import MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation import protocols
from fuse.evaluation.checks import check_detections, check_segmentations, with_categories
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.learned import LearnedFusion
from fuse.learned_io import load_calibrated

_LOG = logging.getLogger(__name__)
Options = TypeVar("Options", bound=EvaluationConfig)


class LiveClassifier(NamedTuple):
    """A calibrated scorer of a live detector, and the ids and names of its K classes."""

    scorer: Head | Posthoc | LearnedFusion
    category_ids: tuple[int, ...]
    names: tuple[str, ...]


def resolve_iou_types(config: Options, has_masks: bool, annotations: EvaluationDataset) -> Options:
    """Returns the options with their default IoU types, bbox unless detections and annotations have masks.

    Raises ValueError for mask AP without masks.
    """
    if "segm" in config.iou_types and not has_masks:
        raise ValueError("there are no masks to evaluate; use --iou-types bbox")
    if "segm" in config.iou_types:
        check_segmentations(annotations)
    if has_masks and not config.iou_types and annotations["annotations"] and not annotations.has_masks:
        _LOG.warning("%s: annotations have no segmentation; evaluation is of boxes", config.annotations)
        has_masks = False
    return replace(config, iou_types=config.iou_types or (("segm",) if has_masks else ("bbox",)))


def resolve_protocol(config: Options, annotations: EvaluationDataset) -> Options:
    """Returns the options with the dataset's protocol, which is logged, and with that protocol's cap on detections.

    A dataset without annotations, which is not evaluated, keeps as many detections as any protocol evaluates.
    Raises ValueError for an engine that does not compute the protocol.
    """
    if not annotations["annotations"]:
        return replace(config, max_detections=config.max_detections or MAX_DETECTIONS)
    protocol = protocols.resolve_protocol(annotations, config.protocol)
    protocols.check_engine(protocol, config.engine)
    cap = config.max_detections or protocols.PROTOCOLS[protocol].max_detections
    changes: dict[str, Any] = {"protocol": protocol, "max_detections": cap}
    return replace(config, **changes)


def open_val_cache(url: str) -> RoICache:
    """Opens a val cache. Raises ValueError for a train cache."""
    cache = open_cache(url)
    if cache.split != "val":
        raise ValueError(
            f"{cache.url}: is a {cache.split} cache, whose ground-truth boxes would compete as proposals; "
            "give one extracted with --split val"
        )
    return cache


def load_classifier(config: ClassifierConfig, cache: RoICache) -> Scorer | None:
    """Loads what `head` names, or fits the method on `fit_cache` or the cache itself; None if the config names neither.

    Raises ValueError if it belongs to another detector than the cache, or if a method that is fitted to labels has no
    `fit_cache`: those of the cache itself are what it is evaluated on.
    """
    if config.head is not None:
        calibrated = load_calibrated(config.head)
        calibrated.check_cache(cache)
        return calibrated
    if config.method is None:
        return None
    method = build_method(config.method, **config.hyperparameters)
    if config.fit_cache is None:
        if method.fits_labels:
            raise ValueError(f"method is {config.method!r}, which is fitted to labels: give --fit-cache, a train cache")
        return method.fit(cache)
    fitted_on = open_cache(config.fit_cache)
    check_same_detector(fitted_on.url, fitted_on.detector, f"in {cache.url}", cache.detector)
    if list(fitted_on.classes["category_id"]) != list(cache.classes["category_id"]):
        raise ValueError(f"{fitted_on.url}: has other categories than {cache.url}")
    if fitted_on.class_map != cache.class_map:
        raise ValueError(f"{fitted_on.url}: has its detector's classes in another order than {cache.url}")
    scorer = method.fit(fitted_on)
    if isinstance(scorer, Head):
        scorer.check_cache(cache)
    return scorer


def load_live_classifier(config: LiveConfig, detector: Detector) -> LiveClassifier:
    """Loads what `head` names, or fits the method on `fit_cache`.

    Raises ValueError if that cache is of another detector; a head is checked where it meets the detector.
    """
    if config.head is not None:
        calibrated = load_calibrated(config.head)
        return LiveClassifier(calibrated, calibrated.category_ids, calibrated.class_names)
    cache = open_cache(str(config.fit_cache))
    owner = f"in detector {detector.description['name']}"
    check_same_detector(cache.url, cache.detector, owner, detector.description)
    method = build_method(str(config.method), **config.hyperparameters).fit(cache)
    return LiveClassifier(method, tuple(cache.classes["category_id"]), tuple(cache.classes["name"]))


def warn_of_tail(config: FusionConfig, instance_counts: Iterable[int]) -> None:
    """Warns if the bound makes all classes tail classes, or none, so that one of the two classifiers is not used."""
    counts = list(instance_counts)
    tail = sum(count < config.tail for count in counts)
    if tail in (0, len(counts)) and (config.mode == "det" or config.mode.startswith("cat")):
        span = f"{min(counts)} to {max(counts)} training instances"
        unused = "calibrated" if tail == 0 else "original"
        text = "tail is %g: %d of %d classes are tail classes (they have %s), so the %s scores of no class are used"
        _LOG.warning(text, config.tail, tail, len(counts), span, unused)


def load_annotations_of(path: Path, cache: RoICache, strict: bool = False) -> tuple[EvaluationDataset, str]:
    """Loads the annotations of exactly the cache's images; returns a phrase that names these images as well.

    Sizes of images that the file lacks are those of the cache. `strict` is that of `load_annotations`.

    Raises ValueError naming what differs: categories, images, or an image's size.
    """
    cached = cache.images[["image_id", "height", "width"]].to_numpy(np.int64).tolist()
    every = load_annotations(path, sizes=_cached_sizes(cache), strict=strict)
    every = with_categories(every, cache.classes)
    sizes = {image["id"]: (image["height"], image["width"]) for image in every["images"]}
    missing = [image_id for image_id, *_ in cached if image_id not in sizes]
    if missing:
        raise ValueError(f"{path}: lacks {len(missing)} images of {cache.url}, image {min(missing)} first")
    for image_id, height, width in cached:
        if sizes[image_id] != (height, width):
            raise ValueError(
                f"{path}: image {image_id} is {sizes[image_id][0]} high and {sizes[image_id][1]} wide, "
                f"in {cache.url} {height} and {width}"
            )
    if len(cached) == len(sizes):
        return every, f"{len(sizes)} images"
    scope = f"{len(cached)} of the {len(sizes)} images of {path.name}: those of the cache"
    return load_annotations(every, [image_id for image_id, *_ in cached]), scope


def load_annotations_of_results(config: ResultsConfig) -> EvaluationDataset:
    """Loads the annotations; sizes of images that the file lacks are those of the val cache, if the config has one."""
    cache = None if config.cache is None else open_cache(config.cache)
    sizes = _cached_sizes(cache) if cache is not None and cache.split == "val" else None
    return load_annotations(config.annotations, sizes=sizes, strict=config.strict)


def load_classes(config: ResultsConfig) -> pd.DataFrame:
    """Reads the class table with training counts, from the cache or the training annotations."""
    if config.cache is not None:
        return open_cache(config.cache).classes
    assert config.train_annotations is not None
    return read_annotations(config.train_annotations, strict=config.strict).classes


def load_results(paths: Sequence[Path], annotations: EvaluationDataset, strict: bool = False) -> dict[str, Detections]:
    """Reads each file's detections, by its name, or by its path where names are not unique.

    Raises ValueError naming the file whose detections are not of the images and categories of the annotations.
    """
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    results = {name: Detections.from_json(path, strict=strict) for name, path in zip(names, paths, strict=True)}
    for path, detections in zip(paths, results.values(), strict=True):
        try:
            check_detections(annotations, detections, "bbox" if detections.rles is None else "segm")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return results


def _cached_sizes(cache: RoICache) -> dict[int, tuple[int, int]]:
    """Returns (height, width) of a cache's images by id."""
    rows = cache.images[["image_id", "height", "width"]].to_numpy(np.int64).tolist()
    return {image_id: (height, width) for image_id, height, width in rows}
