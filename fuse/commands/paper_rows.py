"""The rows of the paper's Tables 2, 4, 6 and 7, detected together and evaluated in one table."""

from __future__ import annotations

from calib.scoring import Scorer
from fuse.inference import Row

BASELINE = "original@0.0"


def paper_rows(calibrated: Scorer | None, **options) -> dict[str, Row]:
    """All rows, or those that need no calibrated scorer. `options` are further fields of `Row`."""
    rows = {
        "original@0.05": Row("original", score_threshold=0.05, **options),
        BASELINE: Row("original", **options),
        "props-gt": Row("props-gt", **options),
    }
    if calibrated is not None:
        modes = {
            "only": "calibrated",
            "avg": "avg",
            "det": "det",
            "cat": "cat",
            "cat-thr": "cat-thr",
            "cat-scale": "cat-scale",
        }
        original = options.get("original")
        if original is not None and original.activation == "sigmoid" and options.get("scale") is None:
            del modes["cat-scale"]  # such a detector's background is not trained, so there is no ratio of it
        rows |= {f"rhead-{name}": Row(mode, calibrated, **options) for name, mode in modes.items()}
        # Table 7: of a strong detector only the rarest bin is replaced.
        rows["rhead-cat@10"] = Row("cat", calibrated, **{**options, "tail": 10})
    return rows
