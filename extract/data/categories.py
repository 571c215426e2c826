"""The categories of an annotation file, in the order in which the file lists them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from extract.data.annotations import AnnotationError


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
    """Returns the categories in the order of the file, which `Annotations` does not keep.

    Raises FileNotFoundError, or AnnotationError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        listed = msgspec.json.decode(path.read_bytes(), type=_File).categories
        return [Category(int(float(one.id)), str(one.name)) for one in listed]
    except (msgspec.DecodeError, ValueError) as error:
        raise AnnotationError(f"{path}: its categories cannot be read: {error}") from None
