"""The class table of every cache: contiguous class → category id, name, frequency, counts of the training set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from extract.utils.errors import shown

if TYPE_CHECKING:
    import pandas as pd

CountColumn = Literal["image_count", "instance_count"]
"""The columns that count a class's images and instances in the training set."""
COLUMNS = {
    "category_id": "int64",
    "name": "str",
    "frequency": "str",
    "image_count": "int64",
    "instance_count": "int64",
}


def check_classes(classes: pd.DataFrame, source: str) -> pd.DataFrame:
    """Returns the class table with the columns of `COLUMNS`, in this order, and index 0…K-1.

    Raises ValueError naming `source`, the column and the invalid value.
    """
    missing = [name for name in COLUMNS if name not in classes]
    if missing:
        raise ValueError(f"{source}: class table lacks {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    if len(classes) == 0:
        raise ValueError(f"{source}: class table is empty, expected at least one class")
    table = classes[list(COLUMNS)].reset_index(drop=True).astype(COLUMNS)
    table.index.name = "class"
    ids = table["category_id"]
    if not ids.is_monotonic_increasing or ids.duplicated().any():
        raise ValueError(f"{source}: category_id must ascend without repeats, got {ids.head(8).tolist()}…")
    unknown = set(table["frequency"]) - {"r", "c", "f"}
    if unknown:
        raise ValueError(f"{source}: frequency {shown(sorted(unknown)[0])}, expected 'r', 'c' or 'f'")
    for name in ("image_count", "instance_count"):
        if (table[name] < 0).any():
            raise ValueError(f"{source}: {name} {table[name].min()} is negative")
    return table
