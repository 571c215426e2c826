"""Annotations of a file that lists some of the categories of another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from extract.data.annotations import Annotations

if TYPE_CHECKING:
    import pandas as pd


def with_classes(annotations: Annotations, classes: pd.DataFrame) -> Annotations:
    """Returns the annotations with labels of another class table, which has all of their categories.

    Its other classes have no annotations: their counts are 0.
    """
    ids, own = classes["category_id"].to_numpy(), annotations.classes
    if np.array_equal(ids, own["category_id"]):
        return annotations
    positions = np.searchsorted(ids, own["category_id"])
    table = classes.copy()
    for column in ("image_count", "instance_count"):
        table[column] = 0
        table.loc[positions, column] = own[column].to_numpy()
    labels, listed = positions[annotations.labels].astype(np.int32), positions[annotations.listed]
    return replace(annotations, labels=labels, listed=listed, classes=table)
