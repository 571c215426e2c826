"""LVIS and COCO annotation files as flat arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from extract.data.classes import check_classes

if TYPE_CHECKING:
    import pandas as pd

OVERHANG = 1.0
"""Pixels by which a box may exceed the image, as rounded boxes do; it is clipped."""


class AnnotationError(ValueError):
    """An invalid annotation file; the message names the file, the entry and the field."""


class BoxAnnotation(Protocol):
    """The fields of an annotation that the checks below read."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]


class _Image(msgspec.Struct):
    id: int
    height: int
    width: int
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None
    file_name: str = ""
    coco_url: str = ""


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str
    frequency: str = ""


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, eq=False)
class Annotations:
    """One annotation file. `N` images, `A` annotations, `K` classes.

    Attributes:
        path: the file.
        sha256: of its bytes.
        image_ids: (N,) int64, ascending.
        heights, widths: (N,) int32 pixels.
        file_names: for each image the candidates for its path in the image folder, the likeliest first.
        classes: class table with the counts of this file.
        ids: (A,) int64 annotation ids, grouped by image.
        labels: (A,) int32 contiguous classes.
        boxes: (A, 4) float32 xyxy pixels, inside the image.
        crowd: (A,) bool, regions of many objects, which no proposal matches.
        exhaustive: (N,) bool, whether the image has no class that is annotated only in part.
        offsets: (N+1,) int64; image i owns annotations `offsets[i]:offsets[i+1]`.
        federated: whether classes are annotated in some images only, as in LVIS: any image of the file has
            `neg_category_ids` or `not_exhaustive_category_ids`.
    """

    path: Path
    sha256: str
    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    file_names: list[tuple[str, ...]]
    classes: pd.DataFrame
    ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    exhaustive: np.ndarray
    offsets: np.ndarray
    federated: bool

    def image_slice(self, position: int) -> slice:
        """Returns the positions of an image's annotations."""
        return slice(int(self.offsets[position]), int(self.offsets[position + 1]))


def read_annotations(path: str | Path) -> Annotations:
    """Reads an LVIS (v0.5, v1) or COCO file.

    Classes are numbered by ascending category id. If the file has no frequency (r, c or f) of a category, it follows
    from the image count as LVIS defines it (1–10, 11–100, more).

    Raises FileNotFoundError, or AnnotationError naming the file, the entry, the field and the value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    raw = path.read_bytes()
    try:
        content = msgspec.json.decode(raw, type=_File)
    except msgspec.DecodeError as error:
        raise AnnotationError(f"{path}: not an LVIS or COCO annotation file: {error}") from None
    images = sorted(content.images, key=lambda image: image.id)
    categories = sorted(content.categories, key=lambda category: category.id)
    image_ids = unique_ids(path, "images", [image.id for image in images])
    category_ids = unique_ids(path, "categories", [category.id for category in categories])
    unique_ids(path, "annotations", sorted(a.id for a in content.annotations))
    annotations = content.annotations
    owner = positions_of(path, annotations, "image_id", image_ids)
    label = positions_of(path, annotations, "category_id", category_ids)
    order = np.argsort(owner, kind="stable")
    heights = np.array([image.height for image in images], np.int32)
    widths = np.array([image.width for image in images], np.int32)
    boxes = clipped_boxes(path, annotations, np.stack([widths, heights], 1)[owner])
    return Annotations(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        image_ids=image_ids,
        heights=heights,
        widths=widths,
        file_names=[_candidates(image) for image in images],
        classes=_class_table(path, categories, owner, label),
        ids=np.array([a.id for a in annotations], np.int64)[order],
        labels=label[order].astype(np.int32),
        boxes=boxes[order],
        crowd=np.array([a.iscrowd for a in annotations], bool)[order],
        exhaustive=np.array([not image.not_exhaustive_category_ids for image in images], bool),
        offsets=np.searchsorted(owner[order], np.arange(len(images) + 1)),
        federated=any(
            image.neg_category_ids is not None or image.not_exhaustive_category_ids is not None for image in images
        ),
    )


def unique_ids(path: str | Path, section: str, ids: list[int]) -> np.ndarray:
    """Returns the ids of a section of the file, which must be ascending, as (n,) int64.

    Raises AnnotationError if one repeats, or if there are no images or categories.
    """
    values = np.array(ids, np.int64)
    if len(values) == 0 and section != "annotations":
        raise AnnotationError(f"{path}: {section} is empty")
    repeats = values[1:][values[1:] == values[:-1]]
    if len(repeats):
        raise AnnotationError(f"{path}: {section}: id {repeats[0]} occurs more than once")
    return values


def positions_of(path: str | Path, annotations: Sequence[BoxAnnotation], field: str, known: np.ndarray) -> np.ndarray:
    """Returns (A,) int64, the positions of the annotations' ids in the ascending `known`.

    Raises AnnotationError for an id that is not there.
    """
    wanted = np.array([getattr(a, field) for a in annotations], np.int64)
    position = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    bad = np.flatnonzero(known[position] != wanted)
    if len(bad):
        raise AnnotationError(
            f"{path}: annotation {annotations[bad[0]].id}: {field} {wanted[bad[0]]} is not in the file"
        )
    return position


def clipped_boxes(path: str | Path, annotations: Sequence[BoxAnnotation], size: np.ndarray) -> np.ndarray:
    """Returns the annotations' boxes (A, 4) float32 xyxy, clipped to `size` (A, 2) = (width, height) of their images.

    Raises AnnotationError for a box that is not finite, has no area or exceeds the image by more than `OVERHANG`.
    """
    xywh = np.array([a.bbox for a in annotations], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    limit = np.concatenate([size, size], 1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        faults = {
            "is not finite": ~np.isfinite(xywh).all(1),
            "has no area": ~(xywh[:, 2:] > 0).all(1),
            "reaches outside its image": ((boxes < -OVERHANG) | (boxes > limit + OVERHANG)).any(1),
        }
    for fault, bad in faults.items():
        if bad.any():
            i = int(np.argmax(bad))
            raise AnnotationError(
                f"{path}: annotation {annotations[i].id}: bbox {list(annotations[i].bbox)} {fault} "
                f"(image {annotations[i].image_id} is {size[i, 0]}×{size[i, 1]})"
            )
    return np.clip(boxes, 0, limit).astype(np.float32)


def _class_table(path: Path, categories: list[_Category], owner: np.ndarray, label: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    pairs = np.unique(label.astype(np.int64) * (owner.max(initial=0) + 1) + owner)
    image_count = np.bincount(pairs // (owner.max(initial=0) + 1), minlength=len(categories))
    derived = np.array(list("rcf"))[np.searchsorted([10, 100], image_count)]
    table = pd.DataFrame(
        {
            "category_id": [c.id for c in categories],
            "name": [c.name for c in categories],
            "frequency": [c.frequency or f for c, f in zip(categories, derived, strict=True)],
            "image_count": image_count,
            "instance_count": np.bincount(label, minlength=len(categories)),
        }
    )
    return check_classes(table, str(path))


def _candidates(image: _Image) -> tuple[str, ...]:
    """Returns possible paths: LVIS v1 has COCO URLs only, and v0.5 prefixes names that have no prefix in COCO 2017."""
    name = image.file_name or image.coco_url
    short = name.rsplit("/", 1)[-1]
    folder = "/".join(image.coco_url.rsplit("/", 2)[-2:])
    return tuple(dict.fromkeys(n for n in (image.file_name, folder, short, short[-16:]) if n))
