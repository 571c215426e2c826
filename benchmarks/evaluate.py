"""AP of several fusions on Mini-LVIS's val cache, for the benchmarks that compare them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from extract import RoICache
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate_rows
from fuse.fusion import Fusion
from fuse.inference import detect_many

ANNOTATIONS = Path(__file__).parents[1] / "data" / "minilvis" / "val.json"


def evaluate_fusions(
    cache: RoICache, fusions: Mapping[str, Fusion], iou_types: Iterable[str] = ("segm", "bbox")
) -> pd.DataFrame:
    """Returns the metrics of fusions, by name, on the images of a val cache, indexed by (iou_type, row)."""
    annotations = load_annotations(ANNOTATIONS, cache.images["image_id"])
    return evaluate_rows(annotations, detect_many(cache, fusions), cache.classes, iou_types=iou_types).summary
