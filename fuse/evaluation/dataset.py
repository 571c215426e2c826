"""Loads annotations for the evaluation engines: checked, with annotation ids from 1."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from extract.data.annotations import AnnotationError, clipped_boxes, positions_of, unique_ids


class _Image(msgspec.Struct):
    id: int
    height: int
    width: int
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class _Category(msgspec.Struct):
    id: int
    frequency: str = ""


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    segmentation: list | dict
    iscrowd: int = 0


class _Dataset(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class EvaluationDataset(dict[str, list[dict]]):
    """Checked content of an annotation file, as `load_annotations` returns it: images, categories, annotations.

    Images have `neg_category_ids` and `not_exhaustive_category_ids`, empty where the file has none. Annotations have
    `iscrowd`, 0 or 1.

    Attributes:
        federated: whether classes are annotated in some images only, as in LVIS: any image of the file has
            `neg_category_ids` or `not_exhaustive_category_ids`.
    """

    def __init__(self, *, federated: bool, **sections: list[dict]) -> None:
        super().__init__(sections)
        self.federated = federated


def load_annotations(source: str | os.PathLike | dict, image_ids: Iterable[int] | None = None) -> EvaluationDataset:
    """Loads an LVIS or COCO annotation file.

    Numbers the annotations from 1, because the official evaluations count a match with annotation 0 as no match.
    If the dataset is federated, drops annotations without area, as the official evaluation of LVIS does.

    Args:
        source: the file or its content, which is not changed. All of it is checked unless it is an `EvaluationDataset`.
        image_ids: images to keep; None keeps all.

    Raises:
        FileNotFoundError, ValueError: naming the file, the annotation, the field and its value.
    """
    if isinstance(source, EvaluationDataset) and image_ids is None:
        return source
    name = "annotations" if isinstance(source, dict) else str(source)
    dataset = source if isinstance(source, EvaluationDataset) else _checked(name, source)
    kept = {image["id"] for image in dataset["images"]}
    if image_ids is not None:
        chosen = set(map(int, image_ids))
        if not chosen <= kept:
            raise ValueError(f"{name}: has no image {min(chosen - kept)}")
        kept = chosen
    smallest = 0 if dataset.federated else -1
    annotations = [a for a in dataset["annotations"] if a["image_id"] in kept and a["area"] > smallest]
    return EvaluationDataset(
        federated=dataset.federated,
        images=[image for image in dataset["images"] if image["id"] in kept],
        categories=dataset["categories"],
        annotations=[{**a, "id": i} for i, a in enumerate(annotations, start=1)],
    )


def _checked(name: str, source: str | os.PathLike | dict) -> EvaluationDataset:
    """Returns the content, with the fields that it may lack, after checks of every image, category and annotation."""
    try:
        content = source if isinstance(source, dict) else msgspec.json.decode(_read(source))
        dataset = msgspec.convert(content, _Dataset)
    except msgspec.DecodeError as error:
        raise AnnotationError(f"{name}: not an LVIS annotation file: {error}") from None
    image_ids = unique_ids(name, "images", sorted(image.id for image in dataset.images))
    category_ids = unique_ids(name, "categories", sorted(category.id for category in dataset.categories))
    unique_ids(name, "annotations", sorted(annotation.id for annotation in dataset.annotations))
    positions_of(name, dataset.annotations, "image_id", image_ids)
    positions_of(name, dataset.annotations, "category_id", category_ids)
    for annotation in dataset.annotations:
        if not 0 <= annotation.area < math.inf:
            raise AnnotationError(f"{name}: annotation {annotation.id}: area is {annotation.area}, expected at least 0")
    _check_shapes(name, [a for a in dataset.annotations if a.area > 0], {i.id: i for i in dataset.images})
    return _complete(content, federated=any(map(_is_federated, dataset.images)))


def _is_federated(image: _Image) -> bool:
    return image.neg_category_ids is not None or image.not_exhaustive_category_ids is not None


def _complete(content: dict, federated: bool) -> EvaluationDataset:
    """Returns the content with the fields of LVIS and COCO that records may lack; the engines need both."""
    image_fields: dict = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return EvaluationDataset(
        federated=federated,
        images=[image_fields | image for image in content["images"]],
        categories=[{"frequency": "f"} | category for category in content["categories"]],
        annotations=[{"iscrowd": 0} | annotation for annotation in content["annotations"]],
    )


def _check_shapes(name: str, annotations: list[_Annotation], images: dict[int, _Image]) -> None:
    """Raises AnnotationError for an invalid box or segmentation; `images` by id."""
    owners = [images[annotation.image_id] for annotation in annotations]
    clipped_boxes(name, annotations, np.array([(o.width, o.height) for o in owners], np.int64).reshape(-1, 2))
    for annotation, image in zip(annotations, owners, strict=True):
        mask = annotation.segmentation
        fault = _polygon_fault(mask) if isinstance(mask, list) else _rle_fault(mask, image)
        if fault:
            value = str(mask) if len(str(mask)) <= 80 else f"{str(mask)[:80]}…"
            raise AnnotationError(f"{name}: annotation {annotation.id}: segmentation {value} {fault}")


def _polygon_fault(polygons: list) -> str | None:
    """Returns what is wrong with a segmentation of polygons, for a message; None if nothing is."""
    try:  # a sum is finite only if all its terms are
        good = [len(p) >= 6 and len(p) % 2 == 0 and math.isfinite(sum(p)) for p in polygons]
    except TypeError:
        good = []
    return None if good and all(good) else "is not a list of polygons of three or more points"


def _rle_fault(rle: dict, image: _Image) -> str | None:
    """Returns what is wrong with a segmentation in RLE, for a message; None if nothing is."""
    from hotcoco import mask

    if list(rle.get("size", ())) != [image.height, image.width]:
        return f"has another size than image {image.id}, which is {image.height} high and {image.width} wide"
    try:
        return None if mask.area(rle) > 0 else "has no pixels"
    except (ValueError, TypeError, KeyError) as error:
        return f"is not a run-length encoding: {error}"


def _read(path: str | os.PathLike) -> bytes:
    """Reads the file. Raises FileNotFoundError if there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    return Path(path).read_bytes()
