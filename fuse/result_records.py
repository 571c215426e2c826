"""Files of LVIS or COCO results as typed records, whatever tool wrote them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extract.data.loose import box, identifier, is_missing, is_text_id, real_number, whole_number
from extract.data.normalize import normalize_segmentation
from extract.data.records import Id, parse_json
from extract.data.repairs import Repairs
from extract.utils.errors import one_line, shown
from extract.utils.memory import garbage_collection_paused
from extract.utils.progress import say_reading

FIELDS: Mapping[str, Callable[[Any], object]] = {
    "image_id": identifier,
    "category_id": whole_number,
    "score": real_number,
    "bbox": box,
}


class Mask(msgspec.Struct):
    """A mask as compressed RLE."""

    size: tuple[int, int]
    counts: str


class ResultRecord(msgspec.Struct):
    """One detection; the box is left, top, width, height."""

    image_id: Id
    category_id: Id
    score: float
    bbox: tuple[float, float, float, float]
    segmentation: Mask | None = None


@garbage_collection_paused()
def read_records(path: str | os.PathLike, strict: bool = False) -> list[ResultRecord]:
    """Reads a file of results.

    Numbers may be text or whole floats, masks may be uncompressed, and a result without a box gets that of its mask,
    which one warning reports, or with `strict` an error.

    Raises FileNotFoundError, or ValueError naming the file, the record, the field and the value.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of detections")
    say_reading(path)
    content = Path(path).read_bytes()
    try:
        return msgspec.json.decode(content, type=list[ResultRecord])
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        parsed = parse_json(content)
        repairs = Repairs(str(path))
        if isinstance(parsed, list):
            parsed = [_normalize(record, f"record {i}", repairs) for i, record in enumerate(parsed)]
        records = msgspec.convert(parsed, list[ResultRecord])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a file of LVIS or COCO results: {one_line(error)}") from None
    repairs.report({"records": len(records)}, strict)
    return records


def _normalize(record: Any, name: str, repairs: Repairs) -> Any:
    """Returns a record with the specified types; what is no record stays as it is. Raises ValueError."""
    if not isinstance(record, dict):
        return record
    values: dict[str, Any] = {}
    segmentation = normalize_segmentation(record.get("segmentation"))
    if segmentation:
        values["segmentation"] = _compressed(segmentation, name)
    for field, read in FIELDS.items():
        value = record.get(field)
        if (is_missing(value) and not (field == "score" and isinstance(value, float))) or value == []:
            continue
        try:
            values[field] = read(value)
        except ValueError as error:
            raise ValueError(f"{name}: {field} is {shown(value)}, expected {error}") from None
    if is_text_id(record.get("image_id")):
        example = f"{shown(record['image_id'])} of {name}"
        repairs.add("records", "have text as image_id, which is an image of that id", example)
    if "bbox" not in values and "segmentation" in values:
        from hotcoco import mask

        values["bbox"] = tuple(mask.to_bbox(values["segmentation"]).tolist())
        repairs.add("records", "have no bbox and get that of their mask", name)
    return values


def _compressed(segmentation: list | dict, name: str) -> dict[str, Any]:
    """Returns a mask as compressed RLE. Raises ValueError for polygons and for damaged RLE."""
    from hotcoco import mask

    if isinstance(segmentation, list):
        raise ValueError(f"{name}: segmentation is {shown(segmentation)}, expected a run-length encoding")
    try:
        height, width = segmentation["size"]
        rle = segmentation
        if not isinstance(rle["counts"], str):
            rle = mask.fr_py_objects(segmentation, height, width)
        mask.area(rle)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{name}: segmentation {shown(segmentation)} is no run-length encoding: {error}") from None
    counts = rle["counts"]
    return {"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts}
