"""The same detections through the field's evaluators: who agrees with whom.

    pip install faster-coco-eval torchmetrics                        # those that are not installed are left out
    python -m benchmarks.crossing
    python -m benchmarks.crossing torchmetrics                       # one evaluator alone

The detections are the original detector's on Mini-LVIS val, from `data/plain/val.zarr`. They are evaluated as federated
and as exhaustive data, as masks and as boxes, with a cap of 300 and of 100, on the first `IMAGES` images: some
evaluators take a minute for them. Writes `benchmarks/results/crossing.csv`; rows of others that are not installed stay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from benchmarks.crossing.evaluators import EVALUATORS, quiet
from benchmarks.crossing.inputs import Inputs, make_inputs
from benchmarks.provenance import provenance, read_results
from benchmarks.speed.measure import merge_rows

RESULTS = Path(__file__).parents[1] / "results" / "crossing.csv"
IMAGES = 150
KEYS = ["evaluator", "data", "iou_type", "cap"]


def main(names: Sequence[str]) -> None:
    """Runs the evaluators, by default all that are installed, on every input."""
    every = make_inputs(images=IMAGES)
    for name in names or EVALUATORS:
        if rows := evaluate(name, every):
            save(pd.DataFrame(rows))


def save(rows: pd.DataFrame) -> None:
    """Writes the rows of an evaluator; rows of others stay."""
    if RESULTS.is_file():
        rows = merge_rows(read_results(RESULTS), rows, KEYS)
        rows = rows.sort_values("evaluator", key=lambda names: names.map(list(EVALUATORS).index), kind="stable")
    rows.to_csv(RESULTS, index=False)


def evaluate(name: str, every: list[Inputs]) -> list[dict[str, str | float]]:
    """Returns one evaluator's row for each input; none if its package is not installed."""
    package, function = EVALUATORS[name]
    try:
        number = version(package)
    except PackageNotFoundError:
        print(f"{name}: {package} is not installed")
        return []
    rows = []
    for inputs in every:
        started = time.process_time()
        with quiet():
            ap = function(inputs)
        seconds = round(time.process_time() - started, 1)
        case = name, "federated" if inputs.federated else "exhaustive", inputs.iou_type, inputs.cap
        values = {"version": number, "AP": round(ap, 4), "seconds": seconds}
        rows.append(dict(zip(KEYS, case, strict=True)) | values | provenance())
        print(*case, f"{ap:.4f} {seconds} s", flush=True)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
