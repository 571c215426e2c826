"""AP of Mini-LVIS's original classifier from logits that a cache of level hidden computes, against stored logits.

    python -m benchmarks.derived data/plain     # the folder of a finished `make demo RECIPE=paper`

Converts the pooled val cache to level hidden in a temporary folder. Writes mask AP to `benchmarks/results/derived.csv`,
with the largest difference of the logits, in steps of half floats at the logit. Fails if AP of masks or boxes differs
by more than `TOLERANCE`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.evaluate import evaluate_fusions
from benchmarks.provenance import provenance
from extract import RoICache, open_cache
from extract.command_configs import ConvertConfig
from extract.convert import run as convert
from fuse.config import FusionConfig
from fuse.fusion import Fusion

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "derived.csv"
TOLERANCE = 0.05
"""Largest difference in AP, in points, of boxes and of masks."""


def main(run: Path) -> None:
    """Converts, evaluates and saves. Raises SystemExit if an AP differs by more than `TOLERANCE`."""
    stored = open_cache(str(run / "val.zarr"))
    with tempfile.TemporaryDirectory() as scratch:
        config = ConvertConfig(stored.url, f"{scratch}/hidden.zarr", projection=0, device="cpu")
        derived = convert(config)
        tables = {"stored": evaluate(stored), "computed": evaluate(derived)}
        steps = difference_in_steps(stored, derived)
    table = pd.concat({name: one.loc["segm"].round(4) for name, one in tables.items()}, names=["logits"])
    table = table.reset_index().drop(columns="row").assign(steps=["", round(steps, 1)], **provenance())
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))
    difference = (tables["computed"] - tables["stored"])["AP"]
    print(difference.to_string())
    if not (difference.abs() <= TOLERANCE).all():
        raise SystemExit(f"AP from computed logits differs by more than {TOLERANCE}")


def evaluate(cache: RoICache) -> pd.DataFrame:
    """Returns the metrics of the original classifier, by IoU type."""
    return evaluate_fusions(cache, {"original": Fusion.for_cache(cache, FusionConfig(mode="original"))})


def difference_in_steps(stored: RoICache, derived: RoICache) -> float:
    """Returns the largest difference of logits, in spacings of half floats at the stored logit of at least 1."""
    largest = 0.0
    for position in range(len(stored)):
        own, other = (np.asarray(cache.image_at(position, ()).logits, np.float32) for cache in (stored, derived))
        spacing = np.spacing(np.maximum(np.abs(own), 1).astype(np.float16)).astype(np.float32)
        largest = max(largest, float((np.abs(own - other) / spacing).max(initial=0)))
    return largest


if __name__ == "__main__":
    main(Path(sys.argv[1]))
