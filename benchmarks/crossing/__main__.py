"""The same detections through the field's evaluators: who agrees with whom.

    pip install faster-coco-eval torchmetrics supervision tidecv seaborn appdirs netcal
    python -m benchmarks.crossing                                    # those that are not installed are left out
    python -m benchmarks.crossing torchmetrics                       # one evaluator alone

The detections are the original detector's on Mini-LVIS val, from `data/plain/val.zarr`. They are evaluated as federated
and as exhaustive data, as masks and as boxes, with a cap of 300 and of 100. Writes average precision to
`benchmarks/results/crossing.csv` and the calibration error to `crossing_calibration.csv`; rows of others that are not
installed stay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import pandas as pd

from benchmarks.crossing.inputs import Inputs, make_inputs
from benchmarks.crossing.registry import MEASURES, Measure, installed_version, quiet
from benchmarks.provenance import provenance
from benchmarks.speed.measure import merge_into

KEYS = ["evaluator", "data", "iou_type", "cap"]


def main(names: Sequence[str]) -> None:
    """Runs the evaluators, by default all that are installed, on every input."""
    known = [name for measure in MEASURES for name in measure.evaluators]
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown evaluators {sorted(unknown)}, expected some of {known}")
    for measure in MEASURES:
        chosen = [name for name in measure.evaluators if name in names or not names]
        every = make_inputs() if chosen else []
        for name in chosen:
            if rows := evaluate(measure, name, every):
                save(measure, pd.DataFrame(rows))


def save(measure: Measure, rows: pd.DataFrame) -> None:
    """Writes the rows of an evaluator; rows of others stay."""
    rows, order = merge_into(measure.file, rows, KEYS), list(measure.evaluators)
    rows = rows.sort_values("evaluator", key=lambda names: names.map(order.index), kind="stable")
    rows.to_csv(measure.file, index=False)


def evaluate(measure: Measure, name: str, every: list[Inputs]) -> list[dict[str, str | float]]:
    """Returns one evaluator's row for each input; none if its package is not installed."""
    evaluator = measure.evaluators[name]
    if not (number := installed_version(evaluator.package)):
        return []
    rows: list[dict[str, str | float]] = []
    known: dict[tuple[str, int, bool], tuple[float, float]] = {}
    for inputs in every:
        key = inputs.iou_type, inputs.cap, inputs.federated and evaluator.federated
        if key not in known:
            started = time.process_time()
            with quiet():
                figure = evaluator.function(inputs)
            known[key] = round(figure, 4), round(time.process_time() - started, 1)
        case = name, "federated" if inputs.federated else "exhaustive", inputs.iou_type, inputs.cap
        values = {"version": number, measure.column: known[key][0], "seconds": known[key][1]}
        rows.append(dict(zip(KEYS, case, strict=True)) | values | provenance())
        print(*case, *known[key], flush=True)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
