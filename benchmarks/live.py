"""Live inference: each framework's own Mask R-CNN R50-FPN against the calibrated detector, in turn, on one image.

    OMP_NUM_THREADS=1 python -m benchmarks.live
    python -m benchmarks.live --device cuda

Weights are random. The classifier's are scaled so that its scores are peaked as a trained one's: most RoIs are
background and some tens of scores are above 0.05.

Columns of `benchmarks/results/live.csv`: framework, head_type of the calibrated head, score_threshold, median seconds
`time` (calibrated) and `baseline_time` (the framework's own), `relative_time` (median of time / baseline_time),
machine, commit, date.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.live_subjects import BUILDERS, make_head, spread_scores
from benchmarks.provenance import provenance
from benchmarks.speed.measure import merge_into
from fuse.live import CalibratedDetector

RESULTS = Path(__file__).parent / "results" / "live.csv"
KEYS = ["framework", "head_type", "score_threshold"]
CASES = ((0.05, "3fc_ft"), (0.05, "linear"), (0.0, "3fc_ft"))
"""Score threshold, and type of the calibrated head."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    frameworks: tuple[str, ...] = tuple(BUILDERS)
    rounds: int = 3
    """Pairs of runs; the median of their ratios is reported."""
    thresholds: tuple[float, ...] = (0.05, 0.0)
    height: int = 800
    width: int = 1216
    device: str = "cpu"


def main(config: Config) -> None:
    """Times all cases, prints the results and saves them. Rows of cases that are not run stay in the file."""
    rows = pd.DataFrame([row for framework in config.frameworks for row in time_framework(config, framework)])
    rows = merge_into(RESULTS, rows, KEYS)
    rows = rows.sort_values("framework", key=lambda names: names.map(list(BUILDERS).index), kind="stable")
    rows.to_csv(RESULTS, index=False)
    print(rows.to_string(index=False))


def time_framework(config: Config, framework: str) -> list[dict[str, str | float]]:
    """Times the cases of one framework whose threshold is in the config; returns one row for each."""
    pixels = np.random.default_rng(0).integers(0, 256, (config.height // 8, config.width // 8, 3))
    image = pixels.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    subject = BUILDERS[framework](config.device)
    spread_scores(subject, image)
    rows = []
    for threshold, head_type in (case for case in CASES if case[0] in config.thresholds):
        live = CalibratedDetector(subject.detector, make_head(subject.detector, head_type), score_threshold=threshold)

        times = compare(partial(live, image), partial(subject.infer, image, threshold), config.rounds)
        case: dict[str, str | float] = dict(zip(KEYS, (framework, head_type, threshold), strict=True))
        rows.append({**case, **times, **provenance()})
        print(rows[-1], flush=True)
    return rows


def compare(live: Callable[[], object], own: Callable[[], object], rounds: int) -> dict[str, float]:
    """Runs both in turn, after one call each; returns the median seconds and the median of their ratios."""
    live(), own()
    pairs = np.array([(seconds(live), seconds(own)) for _ in range(rounds)])
    live_time, own_time = np.median(pairs, axis=0).tolist()
    relative = float(np.median(pairs[:, 0] / pairs[:, 1]))
    return {"time": round(live_time, 4), "baseline_time": round(own_time, 4), "relative_time": round(relative, 4)}


def seconds(function: Callable[[], object]) -> float:
    """Returns the CPU time of a call, which other processes hardly affect; with a GPU, the wall time."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
