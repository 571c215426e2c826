"""What a linear head loses, or wins, when its rows are folded into the detector's own classifier: AP of both.

    python -m benchmarks.folding data/cascade

The folder is that of a finished `make demo`. Writes `benchmarks/results/folding.csv`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import calib
import extract
from calib.heads import Head
from calib.scoring import Original, stage_scores
from extract.rois import RoIs
from fuse.evaluation.lvis import load_annotations
from fuse.evaluation.metrics import evaluate_rows
from fuse.inference import Row, detect_many
from fuse.scores import tail_classes

ROOT = Path(__file__).parents[1]
TAIL = 100


class Folded:
    """Scores as the stock checkpoint of `fuse.folded_classifiers` has them, from the logits of both heads."""

    name = "folded"

    def __init__(self, head: Head, original: Original, tail: np.ndarray):
        self._head, self._original, self._rows = head, original, np.append(tail, False)

    def scores(self, rois: RoIs) -> np.ndarray:
        """(R, K+1) float32 class scores, background last."""
        logits = np.where(self._rows, self._head.logits(rois), rois.logits.astype(np.float32))
        return stage_scores(logits, self._original.average, self._original.activation)


def main(run: Path) -> None:
    """Trains the linear head, and evaluates the rows."""
    val = extract.open_cache(run / "val.zarr")
    head = calib.train_head(run / "train.zarr", head="linear", steps=2000, out=str(run / "linear"))
    tail = tail_classes(val.classes["instance_count"], TAIL)
    folded = Folded(head, Original.from_description(val.detector), tail)
    rows = {"original": Row("original"), "cat": Row("cat", head, tail=tail), "folded": Row("calibrated", folded)}
    truth = load_annotations(ROOT / "data" / "minilvis" / "val.json", val.images["image_id"])
    summary, _ = evaluate_rows(truth, detect_many(val, rows), val.classes)
    table = summary.loc["segm"].iloc[:, :6].round(1)
    table.to_csv(ROOT / "benchmarks" / "results" / "folding.csv", index_label="")
    print(table.to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
