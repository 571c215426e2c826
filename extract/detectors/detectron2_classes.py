"""The class names of detectron2's detectors: in its catalog, under the datasets that the config names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf

from extract.data.categories import read_categories
from extract.detectors.base import OwnClasses


def own_classes(datasets: Iterable[str], k: int) -> OwnClasses | None:
    """Returns the names of a detector's k classes; None if no registered dataset has so many.

    A dataset that is registered as a COCO file has its names there until it is loaded, which numbers the categories by
    ascending id. Nothing is loaded or downloaded here.
    """
    for name in datasets:
        if name not in MetadataCatalog.list():
            continue
        metadata: dict[str, Any] = MetadataCatalog.get(name).as_dict()
        names, ids = metadata.get("thing_classes"), metadata.get("thing_dataset_id_to_contiguous_id")
        source = f"detectron2's dataset {name}"
        if names is None and Path(str(metadata.get("json_file", ""))).is_file():
            categories = sorted(read_categories(metadata["json_file"]))
            names, ids = [one.name for one in categories], {one.id: i for i, one in enumerate(categories)}
        if names is not None and len(names) == k:
            by_output = {output: category_id for category_id, output in (ids or {}).items()}
            complete = sorted(by_output) == list(range(k))
            category_ids = tuple(int(by_output[i]) for i in range(k)) if complete else ()
            return OwnClasses(tuple(map(str, names)), source, category_ids)
    return None


def lazy_datasets(cfg: Any) -> tuple[str, ...]:
    """Returns the names of the datasets of a LazyConfig's data loaders, those for training first."""
    found: list[str] = []
    for loader in ("train", "test"):
        names = OmegaConf.select(cfg, f"dataloader.{loader}.dataset.names", default=None)
        found += [names] if isinstance(names, str) else list(names or ())
    return tuple(map(str, found))
