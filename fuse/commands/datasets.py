"""Datasets of detectron2's catalog, whose names commands take in place of files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from extract.cache.opening import open_cache
from extract.detectors import catalog_dataset
from fuse.commands.live_config import PredictConfig
from fuse.config import EvaluationConfig

Options = TypeVar("Options", bound=EvaluationConfig)


def resolve_annotations(config: Options) -> Options:
    """Returns the options with names of datasets in detectron2's catalog replaced by their files.

    A project's own datasets are found where the config has its detector, or a cache that was extracted with it. The
    folder of images, which only painting needs, is that of the dataset where none is given.

    Raises ValueError if a detector shall paint masks and the folder of images is not known.
    """
    for field in ("annotations", "train_annotations"):
        path = getattr(config, field, None)
        if path is not None and not path.exists():
            dataset = catalog_dataset(path, _detector_of(config))
            changes: dict[str, Any] = {field: dataset[0]} if dataset else {}
            if dataset and field == "annotations" and _lacks_images(config):
                changes["images"] = dataset[1]
            config = replace(config, **changes)
    if _lacks_images(config) and getattr(config, "masks", "none") != "none":
        raise ValueError(f"images: give the folder of the images that {config.annotations} names, to paint masks in")
    return config


def _detector_of(config: EvaluationConfig) -> str:
    """Returns the detector that a config names, or that its cache was extracted with; "" if there is none."""
    named, url = getattr(config, "detector", None), getattr(config, "cache", None)
    extraction = {} if named or url is None else open_cache(url).provenance.get("config", {})
    return str(named or extraction.get("detector", ""))


def _lacks_images(config: EvaluationConfig) -> bool:
    """Returns whether a config names a detector that paints masks, but not the images."""
    return getattr(config, "detector", None) is not None and getattr(config, "images", None) is None


def find_dataset(config: PredictConfig) -> PredictConfig:
    """Returns the options with a dataset of detectron2's catalog replaced by its annotation file and image folder.

    Raises ValueError if there are no images then.
    """
    dataset = config.annotations and catalog_dataset(config.annotations, config.detector)
    if dataset:
        config = replace(config, annotations=dataset[0], images=config.images or (dataset[1],))
    if not config.images:
        raise ValueError(f"images: give files or folders of the images that {config.annotations} names")
    return config
