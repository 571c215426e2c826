"""The categories of an annotation file, in the order in which the file lists them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from extract.data.records import parse_json, read_bytes
from extract.data.repairs import AnnotationError


class Category(NamedTuple):
    """A category of an annotation file."""

    id: int
    name: str


class _Category(msgspec.Struct):
    id: int | float | str
    name: str | int | float = ""


class _File(msgspec.Struct):
    categories: list[_Category]


def read_categories(path: str | Path) -> list[Category]:
    """Returns the categories in the order of the file, without its images and annotations.

    Raises FileNotFoundError, or AnnotationError naming the file.
    """
    content = read_bytes(path)
    try:
        listed = _decode(content)
        return [Category(int(float(one.id)), str(one.name)) for one in listed]
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: its categories cannot be read: {error}") from None


def _decode(content: bytes) -> list[_Category]:
    try:
        return msgspec.json.decode(content, type=_File).categories
    except msgspec.DecodeError:  # NaN or a byte-order mark, which `read_annotations` takes as well
        return msgspec.convert(parse_json(content), _File).categories
