"""AP of Mini-LVIS's plain detector in half precision against fp32, with the original classifier and with `cat`.

    python -m benchmarks.precision data/plain                   # the folder of a finished `make demo RECIPE=paper`
    python -m benchmarks.precision data/plain --precision fp16 --device cuda

Extracts the val cache again, beside the demo's. The head is the demo's, trained on features of fp32. Writes
mask AP to `benchmarks/results/precision.csv`, where rows of another precision stay. Fails if AP of masks or boxes
differs by more than `TOLERANCE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tyro.conf import Positional

import calib
import extract
from benchmarks.evaluate import evaluate_fusions
from benchmarks.paper.setups import MASK_RCNN
from benchmarks.speed.measure import merge_into
from extract.config import Precision
from fuse.config import FusionConfig
from fuse.defaults import TAIL
from fuse.fusion import Fusion

RESULTS = Path(__file__).parent / "results" / "precision.csv"
MINILVIS = Path("data/minilvis")
TOLERANCE = 0.1
"""Largest difference in AP, in points, of boxes and of masks."""


@dataclass(frozen=True)
class Config:
    """What to compare."""

    run: Positional[Path]
    precision: Precision = "bf16"
    device: str = "auto"


def main(config: Config) -> None:
    """Extracts, evaluates and saves. Raises SystemExit if an AP differs by more than `TOLERANCE`."""
    exact = extract.open_cache(str(config.run / "val.zarr"))
    reduced = extract.run(
        extract.Config(
            detector=MASK_RCNN,
            weights=Path("benchmarks/minilvis/weights/plain.safetensors"),
            device=config.device,
            precision=config.precision,
            annotations=MINILVIS / "val.json",
            train_annotations=MINILVIS / "train.json",
            images=MINILVIS / "val",
            split="val",
            proposals=exact.provenance["config"]["proposals"],
            out=str(config.run / f"val-{config.precision}.zarr"),
        )
    )
    assert reduced is not None  # None only after an estimate
    caches = {"fp32": exact, config.precision: reduced}
    tables = {precision: evaluate(cache, config.run / "head") for precision, cache in caches.items()}
    save(tables)
    difference = (tables[config.precision] - tables["fp32"])["AP"]
    print(difference.round(3).to_string())
    if not (difference.abs() <= TOLERANCE).all():
        raise SystemExit(f"AP in {config.precision} differs by more than {TOLERANCE}")


def evaluate(cache: extract.RoICache, head: Path) -> pd.DataFrame:
    """Returns the metrics of the original classifier and of `cat`, by IoU type and row."""
    original, calibrated = FusionConfig(mode="original"), FusionConfig(mode="cat", tail=TAIL)
    fusions = {
        "original": Fusion.for_cache(cache, original),
        "cat": Fusion.for_cache(cache, calibrated, calib.load_head(head)),
    }
    return evaluate_fusions(cache, fusions)


def save(tables: dict[str, pd.DataFrame]) -> None:
    """Writes the mask AP by bin, one row for each classifier and precision."""
    rows = pd.DataFrame(
        [
            {"row": f"{row}, {precision}", **table.loc["segm", row].iloc[:6].round(4)}
            for row in ("original", "cat")
            for precision, table in tables.items()
        ]
    )
    rows = merge_into(RESULTS, rows, ["row"])
    rows.to_csv(RESULTS, index=False)
    print(rows.to_string(index=False))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
