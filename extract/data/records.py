"""The records of LVIS and COCO files, checked and typed.

A file whose values have the types of the specification is decoded straight into structs. Any other is decoded without
types, normalised (`extract.data.normalize`) and converted: slower, and with the memory that pycocotools takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np

from extract.data.normalize import TEXT_ID, normalize_content
from extract.data.repairs import AnnotationError, Repairs
from extract.utils.errors import one_line, shortened
from extract.utils.progress import say_reading

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class ImageRecord(msgspec.Struct):
    """An image; height and width are 0 where the file does not have them, `text_id` is its id where that is text."""

    id: Id
    height: Side
    width: Side
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: list[Id] | None = None
    not_exhaustive_category_ids: list[Id] | None = None
    text_id: str = msgspec.field(default="", name=TEXT_ID)

    @property
    def shown_id(self) -> int | str:
        """The id in the file, long text shortened, for messages."""
        return shortened(self.text_id) or self.id

    @property
    def is_federated(self) -> bool:
        """Whether the image has a field of LVIS that says which classes are annotated in it."""
        return self.neg_category_ids is not None or self.not_exhaustive_category_ids is not None


class CategoryRecord(msgspec.Struct):
    """A category."""

    id: Id
    name: str = ""
    frequency: str = ""


class BoxRecord(msgspec.Struct):
    """An annotation without its shape; the box is left, top, width, height."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


class ShapeRecord(BoxRecord):
    """An annotation; the area is NaN and the segmentation empty where the file does not have them."""

    area: float = float("nan")
    segmentation: list | dict = []


R = TypeVar("R", bound=BoxRecord)


class AnnotationFile(msgspec.Struct, Generic[R]):
    """An annotation file. Files of test sets have no annotations, or only images and categories."""

    images: list[ImageRecord]
    categories: list[CategoryRecord]
    annotations: list[R] | None = None


class HasIds(Protocol):
    """The fields of an annotation that `positions_of` reads."""

    id: int
    image_id: int
    category_id: int


def text_ids_of(images: Sequence[ImageRecord]) -> dict[int, str]:
    """Returns the ids in the file of the images whose ids are text there, by the number that takes their place."""
    return {image.id: image.text_id for image in images if image.text_id}


def read_bytes(path: str | Path) -> bytes:
    """Reads an annotation file. Raises FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    say_reading(path)
    return Path(path).read_bytes()


def decode_records(content: bytes | dict, kind: type[AnnotationFile[R]], repairs: Repairs) -> AnnotationFile[R]:
    """Decodes an annotation file, or converts its content, which is not changed.

    Args:
        content: the bytes of the file, or what its JSON stands for.
        kind: AnnotationFile[BoxRecord] or AnnotationFile[ShapeRecord].
        repairs: is told of values that are not of the specified types.

    Raises AnnotationError naming the file, the entry, the field and the value.
    """
    try:
        if isinstance(content, dict):
            return msgspec.convert(content, kind)
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        parsed = content if isinstance(content, dict) else parse_json(content)
        return msgspec.convert(normalize_content(parsed, repairs), kind)
    except AnnotationError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{repairs.source}: not an LVIS or COCO annotation file: {one_line(error)}") from None


def parse_json(content: bytes) -> Any:
    """Decodes JSON without types: faster than Python's json, which reads NaN and a byte-order mark besides.

    Raises ValueError for what is no JSON, RecursionError for JSON that is nested too deeply.
    """
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return json.loads(content)


def unique_ids(repairs: Repairs, section: str, ids: list[int]) -> np.ndarray:
    """Returns the ids of a section of the file, which must be ascending, as (n,) int64.

    Raises AnnotationError if one repeats, or if there are no images or categories.
    """
    values = np.array(ids, np.int64)
    if len(values) == 0 and section != "annotations":
        raise AnnotationError(f"{repairs.source}: {section} is empty")
    repeats = values[1:][values[1:] == values[:-1]]
    if len(repeats):
        raise AnnotationError(f"{repairs.source}: {section}: id {repairs.shown_id(repeats[0])} occurs more than once")
    return values


def without_repeats(annotations: list[R], repairs: Repairs) -> list[R]:
    """Returns the annotations without those that are the same again, id and all, and tells `repairs` of them."""
    if len({a.id for a in annotations}) == len(annotations):
        return annotations
    first: dict[int, R] = {}
    kept = []
    for a in annotations:
        # Texts are compared, since a missing area is NaN, which does not equal itself.
        if first.setdefault(a.id, a) is not a and repr(first[a.id]) == repr(a):
            repairs.add("annotations", "are the same again and are left out", f"annotation {a.id}")
        else:
            kept.append(a)
    return kept


def positions_of(repairs: Repairs, annotations: Sequence[HasIds], field: str, known: np.ndarray) -> np.ndarray:
    """Returns (A,) int64, the positions of the annotations' ids in the ascending `known`.

    Raises AnnotationError for an id that is not there.
    """
    wanted = np.array([getattr(a, field) for a in annotations], np.int64)
    position = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    bad = np.flatnonzero(known[position] != wanted)
    if len(bad):
        number, value = (repairs.shown_id(i) for i in (annotations[bad[0]].id, wanted[bad[0]]))
        raise AnnotationError(f"{repairs.source}: annotation {number}: {field} {value} is not in the file")
    return position


def image_counts(labels: np.ndarray, owners: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the number of images in which each class is annotated, (K,) int64.

    `labels` (A,) class and `owners` (A,) image of each annotation, integers from 0.
    """
    images = int(owners.max(initial=0)) + 1
    pairs = np.unique(labels.astype(np.int64) * images + owners)
    return np.bincount(pairs // images, minlength=num_classes)


def frequencies(image_counts: np.ndarray) -> np.ndarray:
    """Returns r, c or f of each class by its number of images as LVIS defines it (1–10, 11–100, more), (K,) str."""
    return np.array(list("rcf"))[np.searchsorted([10, 100], image_counts)]
