"""How often the bootstrap intervals over images contain the truth, on Mini-LVIS's val.

    python -m benchmarks.coverage data/plain     # the folder of a finished `make demo RECIPE=paper`

The images of val are the population. A dataset is as many images drawn from it with replacement, and the truth is the
mean AP of such datasets. The intervals of each dataset are those of `fuse.compare`: 1,000 resamples of its images, of
the original detector and of the difference of rhead-cat from it. The share of datasets whose interval contains the
truth should be 95%. Masks are matched once; a dataset is a weight for each image. Writes
`benchmarks/results/coverage.csv`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.evaluate import ANNOTATIONS
from benchmarks.provenance import provenance
from benchmarks.tables import BINS, markdown, provenance_line
from calib.head_io import load_head
from extract.cache.opening import open_cache
from extract.data import bins
from extract.utils.progress import progress_bar
from fuse.config import FusionConfig
from fuse.defaults import BOOTSTRAP_SAMPLES, MAX_DETECTIONS
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.image_bootstrap import resample
from fuse.evaluation.native import Matches
from fuse.evaluation.protocols import match_rows
from fuse.evaluation.resamples import ApColumn, ap_columns
from fuse.evaluation.row_comparison import RowComparison
from fuse.fusion import Fusion
from fuse.inference import detect_many

RESULTS = Path(__file__).parent / "results" / "coverage.csv"
DATASETS, TRUTH_DATASETS = 200, 5000
"""Datasets whose intervals are computed, and those whose mean AP is the truth."""
BASELINE, CANDIDATE = "original", "rhead-cat"
MODES = {BASELINE: "original", CANDIDATE: "cat"}
COLUMNS = BINS[:5]
IOU_TYPE = "segm"


def main(folder: Path, datasets: int) -> None:
    """Measures the coverage and saves it."""
    cache, head = open_cache(str(folder / "val.zarr")), load_head(folder / "head")
    fusions = {row: Fusion.for_cache(cache, FusionConfig.from_options(mode=mode), head) for row, mode in MODES.items()}
    annotations = load_annotations(ANNOTATIONS, cache.images["image_id"])
    detections = list(detect_many(cache, fusions).values())
    rows = list(match_rows("federated", annotations, detections, IOU_TYPE, MAX_DETECTIONS, lambda found: found))
    columns = [column for column in ap_columns(cache.classes, bins.BINS, 1) if column.name in COLUMNS]
    rng, images = np.random.default_rng(0), len(cache)
    population = np.ones(images, np.uint16)
    truth = [np.nanmean(resample(row, columns, draw(rng, population, TRUTH_DATASETS)), axis=1) for row in rows]
    drawn = draw(rng, population, datasets).T
    contained = [contains_truth(rows, columns, dataset, truth, rng) for dataset in progress_bar(drawn, unit="dataset")]
    found = [(row, name, inside) for one in contained for (row, name), inside in one.items()]
    table = pd.DataFrame(found, columns=["row", "column", "coverage"])
    table = table.groupby(["row", "column"], sort=False)["coverage"].mean().reset_index()
    table = table.assign(datasets=datasets, resamples=BOOTSTRAP_SAMPLES, images=images)
    table = table.assign(
        command=f"python -m benchmarks.coverage data/{folder.name} --datasets {datasets}", **provenance()
    )
    table.to_csv(RESULTS, index=False)
    print(coverage_table(table))


def draw(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """Draws as many images as there are from a dataset in which each occurs `weights` (I,) times.

    Returns (I, count) uint16, how often each image is in each draw.
    """
    return rng.multinomial(weights.sum(), weights / weights.sum(), count).T.astype(np.uint16)


def contains_truth(
    rows: Sequence[Matches],
    columns: list[ApColumn],
    dataset: np.ndarray,
    truth: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> dict[tuple[str, str], bool]:
    """Returns by (row, column) whether the interval of a dataset contains the truth; left out where there is no AP.

    Args:
        rows: matches of baseline and candidate on the population.
        columns: of AP.
        dataset: (I,) uint16, how often each image is in it.
        truth: AP (C,) of each row.
        rng: of the resamples.
    """
    weights, names = draw(rng, dataset, BOOTSTRAP_SAMPLES), [column.name for column in columns]
    values = {
        (IOU_TYPE, row): resample(one, columns, dataset[:, None])[:, 0] for row, one in zip(MODES, rows, strict=True)
    }
    samples = {
        (IOU_TYPE, row): pd.DataFrame(resample(one, columns, weights).T, columns=names)
        for row, one in zip(MODES, rows, strict=True)
    }
    summary = pd.DataFrame(values, index=names).T.rename_axis(["iou_type", "row"])
    sampled = pd.concat(samples, names=["iou_type", "row", "sample"])
    compared = RowComparison(summary, pd.DataFrame(), sampled, BASELINE)
    intervals = {BASELINE: compared.intervals.loc[IOU_TYPE].loc[BASELINE]}
    intervals[f"{CANDIDATE} − {BASELINE}"] = compared.differences.loc[IOU_TYPE].loc[CANDIDATE]
    true = dict(zip(intervals, (truth[0], truth[1] - truth[0]), strict=True))
    return {
        (row, name): bool(table.loc[name, "low"] <= value <= table.loc[name, "high"])
        for row, table in intervals.items()
        for name, value in zip(names, true[row], strict=True)
        if not np.isnan(table.loc[name, "low"])
    }


def coverage_table(results: pd.DataFrame) -> str:
    """Formats the coverage in percent, a row for AP and one for the difference."""
    wide = 100 * results.pivot(index="row", columns="column", values="coverage").loc[results["row"].unique(), COLUMNS]
    lines = ([row, *(f"{value:.0f}%" for value in values)] for row, values in zip(wide.index, wide.values, strict=True))
    return markdown(["interval of", *COLUMNS], lines) + "\n\n" + provenance_line(results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datasets", type=int, default=DATASETS)
    options = parser.parse_args()
    main(options.folder, options.datasets)
