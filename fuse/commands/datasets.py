"""Datasets of detectron2's catalog, whose names commands take in place of files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from extract.cache.reader import open_cache
from extract.detectors import catalog_dataset
from fuse.commands.config import PredictConfig
from fuse.config import EvaluationConfig

Options = TypeVar("Options", bound=EvaluationConfig)


def resolve_annotations(config: Options) -> Options:
    """Returns the options with names of datasets in detectron2's catalog replaced by their annotation files.

    A project's own datasets are found where the config has a cache that was extracted with the project's detector.
    """
    for field in ("annotations", "train_annotations"):
        path = getattr(config, field, None)
        if path is not None and not path.exists():
            url = getattr(config, "cache", None)
            extraction = {} if url is None else open_cache(url).provenance.get("config", {})
            dataset = catalog_dataset(path, str(extraction.get("detector", "")))
            changes: dict[str, Any] = {field: dataset[0]} if dataset else {}
            config = replace(config, **changes)
    return config


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
