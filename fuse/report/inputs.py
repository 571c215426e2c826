"""What the report of a comparison is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from fuse.defaults import TAIL
from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.outcomes import Outcomes, object_outcomes
from fuse.gallery import ReadImage


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """A comparison of rows on the same images.

    Attributes:
        summary: of `evaluate_rows`, indexed by (iou_type, row). A column such as `AP` may have columns `AP_low` and
            `AP_high`, its interval, and `AP_within_noise` beside it.
        per_class: of `evaluate_rows`.
        bins: edges of half-open bins of training instances.
        baseline, candidate: the rows that are compared class by class.
        scope: a sentence at the top, how and on which images the rows are evaluated.
        dataset: the ground truth.
        classes: the class table.
        detections: of the two rows that are compared.
        errors: of `fuse.error_table`, with both rows that are compared.
        tail: classes with fewer training instances are tail classes.
        read_image: for the gallery and the thumbnails of detections; None leaves them out.
        weight_norms: (K,) norms of the classifier's weights, by row; empty where they are not known.
    """

    summary: pd.DataFrame
    per_class: pd.DataFrame
    bins: tuple[float, ...]
    baseline: str
    candidate: str
    scope: str
    dataset: EvaluationDataset
    classes: pd.DataFrame
    detections: Mapping[str, Detections]
    errors: pd.DataFrame
    tail: float = TAIL
    read_image: ReadImage | None = None
    weight_norms: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, str]:
        """The rows that are compared: before and after."""
        return self.baseline, self.candidate

    @cached_property
    def outcomes(self) -> dict[str, Outcomes]:
        """What the two rows call each object."""
        return {row: object_outcomes(self.dataset, self.detections[row], self.classes, True) for row in self.rows}

    @cached_property
    def is_tail(self) -> np.ndarray:
        """(K,) bool."""
        return self.classes["instance_count"].to_numpy() < self.tail

    def tables(self, iou_type: str) -> dict[str, pd.DataFrame]:
        """Returns the table of `per_class_ap` of each row."""
        of_type = self.per_class.loc[iou_type]
        return {row: of_type.loc[row] for row in self.summary.loc[iou_type].index}
