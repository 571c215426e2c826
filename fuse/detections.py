"""`Detections`: a data set's detections as flat arrays, and as an LVIS result file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from extract.utils.files import write_bytes


class _Mask(msgspec.Struct):
    size: tuple[int, int]
    counts: str


class _Record(msgspec.Struct, omit_defaults=True):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float]
    segmentation: _Mask | None = None


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of many images, N in all, in the order in which ties are broken.

    Attributes:
        image_id: (N,) int64.
        category_id: (N,) int64, ids of the annotation file.
        score: (N,) float32.
        box: (N, 4) float32 xyxy in pixels of the image.
        rle: N masks `{"size": [height, width], "counts": str}` (compressed COCO RLE), or None without masks.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    score: np.ndarray
    box: np.ndarray
    rle: list[dict] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for lengths that differ."""
        for name, shape in (("category_id", ()), ("score", ()), ("box", (4,))):
            if getattr(self, name).shape != (len(self), *shape):
                found = getattr(self, name).shape
                raise ValueError(f"detections: {name} has shape {found}, expected {(len(self), *shape)}")
        if self.rle is not None and len(self.rle) != len(self):
            raise ValueError(f"detections: {len(self.rle)} masks, expected {len(self)}")

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def xywh(self) -> np.ndarray:
        """(N, 4) float64, the boxes as COCO has them."""
        box = self.box.astype(np.float64)
        box[:, 2:] -= box[:, :2]
        return box

    def take(self, index: np.ndarray) -> Detections:
        """The detections at `index` (integers or a bool mask), in that order."""
        index = np.arange(len(self))[index]
        rle = None if self.rle is None else [self.rle[i] for i in index]
        return Detections(self.image_id[index], self.category_id[index], self.score[index], self.box[index], rle)

    def top(self, count: int, per: str) -> Detections:
        """The best `count` of each image (per="image_id") or class (per="category_id"), in the same order."""
        index = top_of_groups(getattr(self, per), self.score, count)
        return self if len(index) == len(self) else self.take(index)

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes LVIS results: image_id, category_id, score, bbox (xywh) and, with masks, segmentation."""
        names = ("image_id", "category_id", "score", "bbox", "segmentation")
        columns = [self.image_id.tolist(), self.category_id.tolist(), self.score.tolist(), self.xywh.tolist()]
        columns += [] if self.rle is None else [self.rle]
        records = [dict(zip(names, record, strict=False)) for record in zip(*columns, strict=True)]
        write_bytes(path, msgspec.json.encode(records))

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Detections:
        """Reads LVIS results. Raises FileNotFoundError, or ValueError naming the file and the field."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file of detections")
        try:
            records = msgspec.json.decode(Path(path).read_bytes(), type=list[_Record])
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: not a file of LVIS results: {error}") from None
        masks = [r.segmentation for r in records if r.segmentation is not None]
        if masks and len(masks) < len(records):
            raise ValueError(f"{path}: {len(records) - len(masks)} of {len(records)} records lack segmentation")
        xywh = np.array([r.bbox for r in records], np.float64).reshape(-1, 4)
        return cls(
            image_id=np.array([r.image_id for r in records], np.int64),
            category_id=np.array([r.category_id for r in records], np.int64),
            score=np.array([r.score for r in records], np.float32),
            box=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32),
            rle=[{"size": list(m.size), "counts": m.counts} for m in masks] if masks else None,
        )

    def __repr__(self) -> str:
        return "\n".join(f"{name:<11} {text}" for name, text in self._summary())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in self._summary())
        return f"<table>{rows}</table>"

    def _summary(self) -> list[tuple[str, str]]:
        images, counts = np.unique(self.image_id, return_counts=True)
        span = f"{self.score.min():.4g} to {self.score.max():.4g}" if len(self) else "none"
        return [
            ("Detections", f"{len(self):,}"),
            ("images", f"{len(images):,} with any, at most {counts.max(initial=0):,} in one"),
            ("categories", f"{len(np.unique(self.category_id)):,}"),
            ("scores", span),
            ("masks", "yes" if self.rle is not None else "no"),
        ]


def top_of_groups(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Ascending positions of the `count` best scores of each group; among equals the earlier ones."""
    order = np.lexsort((-scores, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    return np.sort(order[rank < count])
