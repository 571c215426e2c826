"""What a RoI cache shows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from extract.cache.columns import StoredColumn
from extract.cache.format import Header
from extract.cache.projections import describe_features
from extract.data.class_map import ClassMap
from extract.utils.summarized import Summarized

if TYPE_CHECKING:
    import pandas as pd


class CacheSummary(Summarized):
    """The part of `RoICache` that describes it; attributes are those of `RoICache`."""

    url: str
    header: Header
    images: pd.DataFrame
    columns: Mapping[str, StoredColumn]
    class_map: ClassMap | None
    num_classes: int
    num_directions: int

    def read(self, field: str) -> np.ndarray:
        """Reads one field of all RoIs; see `RoICache.read`."""
        raise NotImplementedError

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text). Reads all labels."""
        labels, detector = self.read("labels")[:, 0], self.header.detector
        foreground = (labels >= 0) & (labels < self.num_classes)
        present = np.count_nonzero(np.bincount(labels[foreground]))
        widths = {field: column.row_shape for field, column in self.columns.items()}
        stages = len(self.header.stages)
        return [
            ("RoI cache", f"{self.url} ({self.header.split})"),
            ("images", f"{len(self.images):,} ({int(self.images['flipped'].sum()):,} flipped)"),
            ("RoIs", f"{len(labels):,} ({int(foreground.sum()):,} foreground, {stages} stage(s))"),
            ("classes", f"{self.num_classes:,} ({present:,} of them in it)"),
            ("level", self.header.level + describe_features(widths, self.num_directions)),
            ("detector", f"{detector.get('name', 'unknown')} ({detector.get('framework', 'unknown')})"),
            *([("outputs", str(self.class_map))] if self.class_map else []),
            ("columns", ", ".join(self.columns)),
            ("on disk", f"{sum(column.stored_bytes() for column in self.columns.values()) / 1e6:,.1f} MB"),
        ]
