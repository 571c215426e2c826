"""The rows of the paper's Tables 2, 4, 6 and 7."""

from __future__ import annotations

from calib.scoring import Original, Scorer
from fuse.config import FusionConfig

BASELINE = "original@0.0"
MODES = {
    "rhead-only": "calibrated",
    "rhead-avg": "avg",
    "rhead-det": "det",
    "rhead-cat": "cat",
    "rhead-cat-thr": "cat-thr",
    "rhead-cat-scale": "cat-scale",
}
"""Rows of Table 6 → their modes."""


def paper_rows(fusion: FusionConfig, calibrated: Scorer | None, original: Original) -> dict[str, FusionConfig]:
    """Returns all rows by name: `fusion` with changes; without a calibrated scorer, the rows that need none."""
    rows = {
        "original@0.05": fusion.fusion(mode="original", score_threshold=0.05),
        BASELINE: fusion.fusion(mode="original"),
        "props-gt": fusion.fusion(mode="props-gt"),
    }
    if calibrated is not None:
        rows |= {name: fusion.fusion(mode=mode) for name, mode in MODES.items()}
        if original.activation == "sigmoid" and fusion.cat_scale is None:
            del rows["rhead-cat-scale"]  # a sigmoid detector does not train its background, so it has no ratio
        rows["rhead-cat@10"] = fusion.fusion(mode="cat", tail=10)  # Table 7: replaces the rarest bin only
    return rows
