"""LVIS annotations as the evaluation engines need them: checked, with annotation ids from 1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np


class _Image(msgspec.Struct):
    id: int
    height: int
    width: int
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class _Category(msgspec.Struct):
    id: int
    frequency: str


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    segmentation: list | dict


class _Dataset(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class Loaded(dict):
    """An annotation file's content that has been through `load_annotations`."""


def load_annotations(source: str | os.PathLike | dict, image_ids: Iterable[int] | None = None) -> Loaded:
    """An LVIS annotation file's content, restricted to `image_ids`, with its annotations numbered from 1.

    The renumbering is for the official evaluation, which takes a match with annotation 0 for no match; like
    it, annotations without area are left out. `source` may be the content itself and is not changed.

    Raises:
        FileNotFoundError, ValueError: naming the file and the field.
    """
    if isinstance(source, Loaded) and image_ids is None:
        return source
    name = "annotations" if isinstance(source, dict) else str(source)
    try:
        content = source if isinstance(source, dict) else msgspec.json.decode(_read(source))
        msgspec.convert(content, _Dataset)
    except msgspec.DecodeError as error:
        raise ValueError(f"{name}: not an LVIS annotation file: {error}") from None
    wanted = {image["id"] for image in content["images"]}
    if image_ids is not None:
        chosen = set(map(int, image_ids))
        if not chosen <= wanted:
            raise ValueError(f"{name}: has no image {min(chosen - wanted)}")
        wanted = chosen
    annotations = [a for a in content["annotations"] if a["image_id"] in wanted and a["area"] > 0]
    return Loaded(
        images=[image for image in content["images"] if image["id"] in wanted],
        categories=content["categories"],
        annotations=[{**a, "id": i} for i, a in enumerate(annotations, start=1)],
    )


def check_categories(dataset: dict, category_ids: np.ndarray) -> None:
    """Raises ValueError unless the annotations' categories are those of the class table."""
    found = {c["id"] for c in dataset["categories"]}
    differing = sorted(found.symmetric_difference(category_ids.tolist()))
    if differing:
        where = "annotations" if differing[0] in found else "class table"
        raise ValueError(
            f"annotations have {len(found)} categories, the class table {len(category_ids)}; "
            f"{len(differing)} are in one only, the first is category {differing[0]} of the {where}"
        )


def _read(path: str | os.PathLike) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    return Path(path).read_bytes()
