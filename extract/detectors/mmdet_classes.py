"""The class names of mmdetection's detectors: in the checkpoint's `meta`, else in the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config

from extract.detectors.base import OwnClasses

LOADERS = ("train_dataloader", "test_dataloader", "val_dataloader")
META_KEYS = ("classes", "palette")


def dataset_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns classes and palette in a checkpoint's `meta`, as far as it has them; mmdetection 2.x has `CLASSES`."""
    dataset = meta.get("dataset_meta")
    found = {**meta, **(dataset if isinstance(dataset, Mapping) else {})}
    by_name = {str(key).lower(): value for key, value in found.items()}
    return {key: tuple(by_name[key]) for key in META_KEYS if isinstance(by_name.get(key), list | tuple)}


def own_classes(meta: Mapping[str, Any], weights: Path, config: Config, config_file: Path, k: int) -> OwnClasses | None:
    """Returns the names of a detector's k classes; None if neither checkpoint nor config names so many.

    Args:
        meta: of `dataset_meta`.
        weights: the checkpoint file.
        config: the detector's config.
        config_file: its file.
        k: number of classes besides background.
    """
    candidates = [(meta.get("classes"), f"{weights} (dataset_meta)"), *_config_classes(config, config_file)]
    for names, source in candidates:
        if isinstance(names, list | tuple) and len(names) == k:
            return OwnClasses(tuple(map(str, names)), source)
    return None


def _config_classes(config: Config, file: Path) -> Iterator[tuple[Any, str]]:
    """Yields the classes that the config's datasets are given, then those that their types have."""
    datasets = [one for loader in LOADERS for one in _datasets(config.get(loader, {}).get("dataset"))]
    for dataset in datasets:
        yield _classes(dataset.get("metainfo")), f"{file} (metainfo)"
    for dataset in datasets:
        kind = dataset.get("type")
        cls = DATASETS.get(kind) if isinstance(kind, str) else kind
        yield _classes(getattr(cls, "METAINFO", None)), f"{file} ({getattr(cls, '__name__', kind)})"


def _datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Yields a dataset's config and those that it wraps or joins."""
    if isinstance(dataset, Mapping):
        yield dataset
        yield from _datasets(dataset.get("dataset"))
        for one in dataset.get("datasets") or ():
            yield from _datasets(one)


def _classes(metainfo: Any) -> Any:
    return (metainfo.get("classes") or metainfo.get("CLASSES")) if isinstance(metainfo, Mapping) else None
