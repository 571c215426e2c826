"""Mask AP of a linear head whose rows are folded into the detector's own classifier, against mode `cat`.

    python -m benchmarks.folding data/cascade

The argument is the folder of a finished `make demo RECIPE=paper`. Writes `benchmarks/results/folding.csv`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import calib
import extract
from benchmarks.evaluate import evaluate_fusions
from calib.heads import Head
from calib.scoring import Level, Original, Scorer
from extract.class_scores import stage_scores
from extract.rois import RoIs
from fuse.config import FusionConfig
from fuse.defaults import TAIL
from fuse.fusion import Fusion
from fuse.scores import FusionMode, tail_classes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "folding.csv"


class Folded:
    """The scorer of the stock checkpoint that `fuse.folded_classifiers` makes: one softmax over rows of both heads."""

    name = "folded"

    def __init__(self, head: Head, original: Original, tail: np.ndarray) -> None:
        """Takes the logits of the classes in `tail`, (K,) bool, from the head."""
        self._head, self._original, self._from_head = head, original, np.append(tail, False)

    @property
    def level(self) -> Level:
        """Feature level of the head."""
        return self._head.level

    @property
    def instance_counts(self) -> Sequence[int]:
        """Training instances of the classes."""
        return self._head.instance_counts

    def scores(self, rois: RoIs) -> np.ndarray:
        """Returns (R, K+1) float32 class scores, background last."""
        logits = np.where(self._from_head, self._head.logits(rois), rois.logits.astype(np.float32))
        return stage_scores(logits, self._original.average, self._original.activation)


def main(run: Path) -> None:
    """Trains a linear head, and evaluates the original, `cat` and the folded checkpoint."""
    val = extract.open_cache(str(run / "val.zarr"))
    head = calib.train_head(run / "train.zarr", head_type="linear", steps=2000, out=str(run / "linear"))
    tail = tail_classes(val.classes["instance_count"].to_numpy(), TAIL)
    folded = Folded(head, Original.from_description(val.detector), tail)
    rows: dict[str, tuple[FusionMode, Scorer | None]] = {
        "original": ("original", None),
        "cat": ("cat", head),
        "folded": ("calibrated", folded),
    }
    fusions = {
        name: Fusion.for_cache(val, FusionConfig(mode=mode, tail=TAIL), scorer) for name, (mode, scorer) in rows.items()
    }
    table = evaluate_fusions(val, fusions, ("segm",)).loc["segm"].iloc[:, :6].round(4)
    table.to_csv(RESULTS, index_label="row")
    print(table.to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
