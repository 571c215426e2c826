"""`Detections`: the detections of a dataset as arrays, and as a file of LVIS results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from extract.utils.files import replacing
from extract.utils.summarized import Summarized
from fuse.result_records import read_records

RECORDS_AT_ONCE = 50_000
"""Of a file of results: LVIS's 20,000 images have six million, and a record takes half a kilobyte in memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Summarized):
    """N detections of many images. Of equal scores, the earlier detection ranks first.

    Attributes:
        image_ids: (N,) int64.
        category_ids: (N,) int64, ids of the annotation file.
        scores: (N,) float32; float64 from a file whose scores float32 cannot hold, so that none become equal.
        boxes: (N, 4) float32 xyxy in pixels of the image.
        rles: N masks `{"size": [height, width], "counts": str}` (compressed COCO RLE), or None without masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    rles: list[dict] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for lengths that differ."""
        for name, shape in (("category_ids", ()), ("scores", ()), ("boxes", (4,))):
            if getattr(self, name).shape != (len(self), *shape):
                found = getattr(self, name).shape
                raise ValueError(f"detections: {name} have shape {found}, expected {(len(self), *shape)}")
        if self.rles is not None and len(self.rles) != len(self):
            raise ValueError(f"detections: {len(self.rles)} masks, expected {len(self)}")

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def xywh(self) -> np.ndarray:
        """(N, 4) float64, the boxes in COCO's format: left, top, width, height."""
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def take(self, index: np.ndarray | slice) -> Detections:
        """Returns the detections at `index` (integers, a bool mask or a slice), in that order."""
        taken = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.arange(len(self))[index]
        rles = None if self.rles is None else [self.rles[i] for i in taken]
        return Detections(self.image_ids[taken], self.category_ids[taken], self.scores[taken], self.boxes[taken], rles)

    def top_per_image(self, count: int) -> Detections:
        """Returns the `count` best detections of each image, in the same order."""
        return self._sorted_subset(top_of_groups(self.image_ids, self.scores, count))

    def top_per_class(self, count: int) -> Detections:
        """Returns the `count` best detections of each class over all images, in the same order."""
        return self._sorted_subset(top_of_groups(self.category_ids, self.scores, count))

    def to_json(self, path: str | os.PathLike, text_ids: Mapping[int, str] | None = None) -> None:
        """Writes LVIS results: image_id, category_id, score, bbox (xywh); with masks also segmentation.

        `text_ids` has ids to write in place of image ids, as the attribute of `load_annotations`' and
        `read_annotations`' results has where a file's ids are text.
        """
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(b"[")
            for start in range(0, len(self), RECORDS_AT_ONCE):
                records = self.take(slice(start, start + RECORDS_AT_ONCE))._records(text_ids or {})
                file.write((b"," if start else b"") + msgspec.json.encode(records)[1:-1])
            file.write(b"]")

    @classmethod
    def from_json(cls, path: str | os.PathLike, *, strict: bool = False) -> Detections:
        """Reads LVIS or COCO results, as any tool may have written them: without boxes, those are of the masks.

        With `strict`, what a warning would report is an error.

        Raises FileNotFoundError, or ValueError naming the file and the field.
        """
        records = read_records(path, strict)
        masks = [r.segmentation for r in records if r.segmentation is not None]
        if masks and len(masks) < len(records):
            raise ValueError(f"{path}: {len(records) - len(masks)} of {len(records)} records lack segmentation")
        scores = np.array([r.score for r in records], np.float64)
        rounded = scores.astype(np.float32)
        xywh = np.array([r.bbox for r in records], np.float64).reshape(-1, 4)
        return cls(
            image_ids=np.array([r.image_id for r in records], np.int64),
            category_ids=np.array([r.category_id for r in records], np.int64),
            scores=rounded if (rounded == scores).all() else scores,
            boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32),
            rles=[{"size": list(m.size), "counts": m.counts} for m in masks] if masks else None,
        )

    @classmethod
    def of_images(
        cls, image_ids: Sequence[int], found: Sequence[tuple[np.ndarray, ...]], category_ids: np.ndarray
    ) -> Detections:
        """Joins images' detections.

        Args:
            image_ids: of the N images.
            found: N `ImageDetections` in the same order, of `CalibratedDetector.predict`: boxes (D, 4) float32 xyxy,
                labels (D,) int64 and scores (D,) float32. Labels are indices of `category_ids`.
            category_ids: (K,) int64.
        """
        none = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.float32)
        boxes, labels, scores = map(np.concatenate, zip(none, *found, strict=True))
        owners = np.repeat(np.asarray(image_ids, np.int64), [len(boxes) for boxes, *_ in found])
        return cls(owners, category_ids[labels], scores, boxes)

    def _records(self, text_ids: Mapping[int, str]) -> list[dict[str, object]]:
        """Returns the results that `to_json` writes."""
        names = ("image_id", "category_id", "score", "bbox", "segmentation")
        image_ids = [text_ids.get(image_id, image_id) for image_id in self.image_ids.tolist()]
        columns = [image_ids, self.category_ids.tolist(), self.scores.tolist(), self.xywh.tolist()]
        columns += [] if self.rles is None else [self.rles]
        return [dict(zip(names, record, strict=False)) for record in zip(*columns, strict=True)]

    def _sorted_subset(self, index: np.ndarray) -> Detections:
        """Returns `take(index)` for ascending indices without repeats; no copy if they are all."""
        return self if len(index) == len(self) else self.take(index)

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        images, counts = np.unique(self.image_ids, return_counts=True)
        span = f"{self.scores.min():.4g} to {self.scores.max():.4g}" if len(self) else "none"
        return [
            ("Detections", f"{len(self):,}"),
            ("images", f"{len(images):,} with any, at most {counts.max(initial=0):,} in one"),
            ("categories", f"{len(np.unique(self.category_ids)):,}"),
            ("scores", span),
            ("masks", "yes" if self.rles is not None else "no"),
        ]


def positions_by_image(image_ids: np.ndarray) -> list[np.ndarray]:
    """Returns the ascending positions of each image's entries in `image_ids` (N,), images by ascending id."""
    order = np.argsort(image_ids, kind="stable")
    starts = np.flatnonzero(np.diff(image_ids[order])) + 1
    return np.split(order, starts) if len(order) else []


def best_first(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the indices that sort by ascending group, then by descending score; equal ones keep their order.

    A radix sort, for which NumPy sorts digits of 16 bits. It is several times as fast as `numpy.lexsort`.

    Args:
        groups: (N,) integers.
        scores: (N,) float32 or float64, without NaN.
    """
    bits = f"i{scores.itemsize}"
    keys = (-scores + 0).view(bits)  # of zeros only the positive one is left
    keys = np.where(keys < 0, ~keys, keys ^ np.iinfo(bits).min).view(f"u{scores.itemsize}")
    order = np.arange(len(groups))
    for key in (keys, (groups - groups.min(initial=0)).astype(np.uint64)):
        for shift in range(0, int(key.max(initial=0)).bit_length(), 16):
            digits = (key >> key.dtype.type(shift)).astype(np.uint16)
            order = order[np.argsort(digits[order], kind="stable")]
    return order


def top_of_groups(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` best scores of each group, ascending; of equal scores, the earlier ones.

    `groups` (N,) integers, the group of each score; `scores` (N,).
    """
    if count >= _largest_group(groups):  # quicker than ranking them
        return np.arange(len(groups))
    order = best_first(groups, scores)
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    return np.sort(order[rank < count])


def _largest_group(groups: np.ndarray) -> int:
    """Returns how often the most frequent value occurs; quick for ascending values, as those of images mostly are."""
    steps = np.diff(groups)
    if (steps >= 0).all():
        return int(np.diff(np.flatnonzero(steps), prepend=-1, append=len(groups) - 1).max())
    return int(np.unique(groups, return_counts=True)[1].max())
