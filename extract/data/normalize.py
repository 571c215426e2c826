"""Normalises the content of annotation files whose values have other types than specified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from extract.data.loose import (
    box,
    flag,
    identifier,
    image_side,
    is_missing,
    is_respelled,
    is_text_id,
    real_number,
    text,
    whole_number,
    whole_numbers,
)
from extract.data.repairs import AnnotationError, Repairs
from extract.utils.errors import shortened, shown

Fields = Mapping[str, Callable[[Any], object]]
IMAGE: Fields = {
    "id": identifier,
    "height": image_side,
    "width": image_side,
    "file_name": text,
    "coco_url": text,
    "neg_category_ids": whole_numbers,
    "not_exhaustive_category_ids": whole_numbers,
}
CATEGORY: Fields = {"id": whole_number, "name": text, "frequency": text}
ANNOTATION: Fields = {
    "id": identifier,
    "image_id": identifier,
    "category_id": whole_number,
    "bbox": box,
    "iscrowd": flag,
    "area": real_number,
}
RESPELLED = "have numbers written as text, as floats or as true and false"
TEXT_IDS = "have text as id: a number made of it takes its place, but not in results"
NO_IDS = "have no id and get one"
TEXT_ID = "__text_id"
"""Field of a normalised image: its id where that is text, for results."""


def normalize_content(content: Any, repairs: Repairs) -> Any:
    """Returns the content with numbers as numbers, and without missing values; what is no record stays as it is.

    A missing height or width becomes 0, a missing box that of the segmentation.

    Raises AnnotationError naming the file, the entry, the field and the value.
    """
    if not isinstance(content, dict):
        return content
    result: dict[str, Any] = {}
    for section, fields in (("images", IMAGE), ("categories", CATEGORY), ("annotations", ANNOTATION)):
        records = content.get(section)
        if isinstance(records, list | tuple):
            result[section] = [_normalize_record(record, section, fields, repairs) for record in records]
            if section == "annotations":
                _number(result[section], repairs)
        elif not is_missing(records):
            result[section] = records
    return result


def _normalize_record(record: Any, section: str, fields: Fields, repairs: Repairs) -> Any:
    if not isinstance(record, dict):
        return record
    values: dict[str, Any] = {"height": 0, "width": 0} if section == "images" else {}
    if section == "annotations":
        values["segmentation"] = normalize_segmentation(record.get("segmentation"))
        if _is_empty(record.get("bbox")):
            values["bbox"] = _box_of_segmentation(record, values["segmentation"], repairs)
    if section == "images" and isinstance(record.get("id"), str):
        values[TEXT_ID] = record["id"]
        repairs.add(section, TEXT_IDS, _name(section, record), count=is_text_id(record["id"]))
    respelled = ""
    for name, read in fields.items():
        value = record.get(name)
        if is_missing(value) or (name == "bbox" and _is_empty(value)):
            continue
        try:
            values[name] = read(value)
        except ValueError as error:
            where = _name(section, record)
            raise AnnotationError(f"{repairs.source}: {where}: {name} is {shown(value)}, expected {error}") from None
        if read is identifier and isinstance(value, str) and is_text_id(value):
            repairs.text_ids[int(values[name])] = value
        elif not respelled and is_respelled(value, values[name]):
            respelled = f"{name} {shown(value)} of {_name(section, record)}"
    repairs.add(section, RESPELLED, respelled, count=bool(respelled))
    return values


def _number(annotations: list[Any], repairs: Repairs) -> None:
    """Gives annotations without an id the numbers that follow the highest id."""
    records = [record for record in annotations if isinstance(record, dict)]
    number = max((record["id"] for record in records if "id" in record), default=0)
    for record in records:
        if "id" not in record:
            number += 1
            record["id"] = number
            repairs.add("annotations", NO_IDS, f"annotation {number}")


def normalize_segmentation(value: Any) -> list | dict:
    """Returns polygons as lists, a run-length encoding as `normalize_rle` does, or [] if there is none."""
    if isinstance(value, Mapping):
        return normalize_rle(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [part.tolist() if isinstance(part, np.ndarray) else part for part in value]
    return [] if is_missing(value) else [value]


def normalize_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run-length encoding with text in place of bytes and integers in place of whole floats.

    What is neither stays as it is: whoever needs the shape refuses it.
    """
    result = dict(rle)
    for name, value in rle.items():
        if isinstance(value, bytes):
            result[name] = value.decode("ascii", "replace")
        elif isinstance(value, list | tuple | np.ndarray):
            with suppress(ValueError):
                result[name] = whole_numbers(value)
    return result


def segmentation_box(segmentation: list | dict) -> tuple[float, ...] | None:
    """Returns the box around polygons or a run-length encoding, left, top, width, height; None if there is none."""
    try:
        if isinstance(segmentation, dict):
            from hotcoco import mask

            return tuple(mask.to_bbox(segmentation).tolist())
        points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation])
        low, high = points.min(0), points.max(0)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return (*low.tolist(), *(high - low).tolist())


def _box_of_segmentation(record: dict, segmentation: list | dict, repairs: Repairs) -> tuple[float, ...]:
    found = segmentation_box(segmentation)
    where = _name("annotations", record)
    if found is None:
        raise AnnotationError(f"{repairs.source}: {where}: bbox is missing, and there is no segmentation to take it of")
    repairs.add("annotations", "have no bbox and get that of their segmentation", where)
    return found


def _is_empty(value: object) -> bool:
    return is_missing(value) or (isinstance(value, list | tuple) and len(value) == 0)


def _name(section: str, record: dict) -> str:
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}[section]
    return f"{singular} {shortened(record['id'])}" if "id" in record else f"{singular} without an id"
