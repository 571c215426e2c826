"""Ground truth as flat arrays, sorted by cell: an image and a class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fuse.evaluation.dataset import EvaluationDataset

TABLE_SIZE = 1 << 20
"""Ids below this are looked up in a table, larger ones by bisection."""
TABLE_SHARE = 16
"""A table of flags may have this many entries for each value that is looked up in it."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """G objects by ascending cell. Cell i * K + k is image i and class k, both by ascending id.

    Attributes:
        dataset: that it is of.
        image_ids, category_ids: (I,) and (K,) int64, ascending.
        cells: (G,) int64.
        areas: (G,) float64, of the file.
        boxes: (G, 4) float64 xywh.
        crowd: (G,) bool.
        segmentations: G polygons or RLE.
    """

    dataset: EvaluationDataset
    image_ids: np.ndarray
    category_ids: np.ndarray
    cells: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    segmentations: list

    @classmethod
    def from_dataset(cls, dataset: EvaluationDataset) -> GroundTruth:
        """Sorts the annotations of a dataset by cell; those of a cell keep their order."""
        image_ids, category_ids = (np.unique(_column(dataset[key], "id")) for key in ("images", "categories"))
        annotations = dataset["annotations"]
        images = np.searchsorted(image_ids, _column(annotations, "image_id"))
        cells = images * len(category_ids) + np.searchsorted(category_ids, _column(annotations, "category_id"))
        order = np.argsort(cells, kind="stable")
        ordered = [annotations[i] for i in order.tolist()]
        return cls(
            dataset=dataset,
            image_ids=image_ids,
            category_ids=category_ids,
            cells=cells[order],
            areas=np.array([a["area"] for a in ordered], np.float64),
            boxes=np.array([a["bbox"] for a in ordered], np.float64).reshape(-1, 4),
            crowd=np.array([a["iscrowd"] for a in ordered], bool),
            segmentations=[a["segmentation"] for a in ordered],
        )

    def cells_of(self, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """Returns the cells (N,) int64 of known images and categories (N,)."""
        return self._images(image_ids) * len(self.category_ids) + self._classes(category_ids)

    def cells_listed(self, field: str) -> np.ndarray:
        """Returns the cells of the categories that images list in a field, ascending."""
        images = self.dataset["images"]
        counts = [len(image[field]) for image in images]
        listed = np.array([i for image in images for i in image[field]], np.int64)
        return np.unique(self.cells_of(np.repeat(_column(images, "id"), counts), listed))

    @cached_property
    def _images(self) -> Lookup:
        return Lookup(self.image_ids)

    @cached_property
    def _classes(self) -> Lookup:
        return Lookup(self.category_ids)

    @cached_property
    def classes(self) -> np.ndarray:
        """(G,) int64 classes of the objects."""
        return self.cells % len(self.category_ids)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(I, 2) int64, height and width of the images, by ascending id."""
        known = {image["id"]: (image["height"], image["width"]) for image in self.dataset["images"]}
        return np.array([known[i] for i in self.image_ids.tolist()], np.int64)


class Lookup:
    """Positions of values among some that are ascending, all of which it has: from a table if they are small."""

    def __init__(self, ascending: np.ndarray):
        self._ascending = ascending
        self._table: np.ndarray | None = None
        if len(ascending) and ascending[0] >= 0 and ascending[-1] < TABLE_SIZE:
            self._table = np.zeros(ascending[-1] + 1, np.int64)
            self._table[ascending] = np.arange(len(ascending))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Returns (N,) int64 positions of values (N,)."""
        return np.searchsorted(self._ascending, values) if self._table is None else self._table[values]


def contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: whether each value (N,) is among some ascending ones; from a table if that is small."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    if ascending[0] >= 0 and ascending[-1] < TABLE_SHARE * len(values):
        table = np.zeros(ascending[-1] + 2, bool)
        table[ascending] = True
        return table[np.minimum(values.astype(np.int64).view(np.uint64), len(table) - 1)]  # negative ones are huge
    places = np.searchsorted(ascending, values)
    return ascending[np.minimum(places, len(ascending) - 1)] == values


def _column(records: list[dict], field: str) -> np.ndarray:
    return np.array([record[field] for record in records], np.int64)
