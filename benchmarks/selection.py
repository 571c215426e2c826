"""`python -m fuse select` on Mini-LVIS's detectors: every method and learned fusion, compared once on test.

    python -m benchmarks.selection plain
    python -m benchmarks.selection --iou-type bbox cascade htc    # without masks, which extraction needs most time for

Extracts the caches of a detector that are missing, of level hidden: train, the held-out training images, and test.
Methods and their hyperparameters are chosen on the held-out images, learned fusion is fitted to them, and the table is
of test. Rows go to `benchmarks/results/selection.csv`: AP with its intervals over images, the gain of learned fusion
over the row with its paired interval, and the processor seconds of the extraction of the held-out images and of
`select`, empty for what was there already.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import extract
from benchmarks.paper.inputs import open_finished, prepare_framework
from benchmarks.paper.setups import ROOT, SEED, Setup, mini_lvis
from benchmarks.provenance import provenance, read_results
from benchmarks.tables import BINS, markdown, provenance_line
from extract import RoICache
from fuse.commands.select import LEARNED, ORIGINAL, SELECTION_FILE, select
from fuse.commands.select_config import SelectConfig
from fuse.evaluation.row_comparison import RowComparison

RESULTS = ROOT / "benchmarks" / "results" / "selection.csv"
GAINS = BINS[:5]
"""Columns of AP of which the gain of learned fusion is kept."""
KEYS = ["detector", "iou_type"]
IouType = Literal["segm", "bbox"]
NAMES = {"segm": "masks", "bbox": "boxes"}


def main(
    detectors: Sequence[str], caches: Path, iou_type: IouType, methods: Sequence[str], steps: Sequence[int]
) -> None:
    """Measures and saves each detector's rows."""
    setup = mini_lvis()
    for detector in detectors:
        options = {"methods": tuple(methods), "steps": tuple(steps)}
        rows = measure(setup, detector, caches / detector, iou_type, **options)
        command = f"python -m benchmarks.selection {detector} --iou-type {iou_type} --steps {' '.join(map(str, steps))}"
        command += f" --methods {' '.join(methods)}" if methods else ""
        rows = rows.assign(command=command, **provenance())
        if RESULTS.is_file():
            before = read_results(RESULTS)
            kept = (before[KEYS] != [detector, iou_type]).any(axis=1)
            rows = pd.concat([before[kept], rows], ignore_index=True)
        rows.to_csv(RESULTS, index=False)
        print(selection_table(rows))


def measure(setup: Setup, detector: str, folder: Path, iou_type: IouType, **options: Any) -> pd.DataFrame:
    """Returns the rows of a detector; its caches and heads are in `folder`. Caches have masks for mask AP only.

    `options` are fields of `SelectConfig`.
    """
    masks = iou_type == "segm"
    train, _ = open_or_extract(setup, detector, "train", folder)
    holdout, extraction = open_or_extract(setup, detector, "holdout", folder, train, masks)
    test, _ = open_or_extract(setup, detector, "test", folder, train, masks)
    config = SelectConfig(
        cache=test.url,
        train=train.url,
        holdout=holdout.url,
        annotations=setup.annotations["test"],
        train_annotations=setup.annotations["train"],
        out=folder / "select",
        iou_types=(iou_type,),
        seed=SEED,
        **options,
    )
    begun_before = config.out.exists()
    started = time.process_time()
    tables = select(config)
    seconds = None if begun_before else time.process_time() - started
    winner = json.loads((config.out / SELECTION_FILE).read_text())
    chosen = winner["chosen"][winner["winner"]]["row"]
    rows = _rows(tables, iou_type, chosen)
    rows.insert(0, "detector", detector)
    return rows.assign(seconds_holdout=extraction, seconds_select=seconds)


def open_or_extract(
    setup: Setup,
    detector: str,
    split: Literal["train", "holdout", "test"],
    folder: Path,
    train: RoICache | None = None,
    masks: bool = False,
) -> tuple[RoICache, float | None]:
    """Returns a cache of level hidden, and the processor seconds of its extraction; None if it was there."""
    out = folder / f"{split}.zarr"
    if (finished := open_finished(out)) is not None:
        return finished, None
    files = setup.detectors[detector]
    prepare_framework(files)
    source = "test" if split == "test" else "train"
    options: dict[str, Any] = {"split": "val" if split == "test" else split}
    if train is None:
        options |= {"min_images_per_class": setup.min_images_per_class}
    else:
        options |= {"proposals": setup.proposals, "projection_from": train.url, "masks": masks}
        options |= {"train_annotations": setup.annotations["train"]}
    started = time.process_time()
    cache = extract.run(
        extract.Config(
            **files.fields(),
            annotations=setup.annotations[source],
            images=setup.images[source],
            out=str(out),
            level="hidden",
            seed=SEED,
            **options,
        )
    )
    assert cache is not None, "only an estimate returns None"
    return cache, time.process_time() - started


def _rows(tables: RowComparison, iou_type: IouType, chosen: str) -> pd.DataFrame:
    """Returns AP of each row with its interval, and the gain of learned fusion; `chosen` is the winner on held-out."""
    summary, intervals = tables.summary.loc[iou_type], tables.intervals.loc[iou_type]
    records = []
    for row in summary.index:
        record: dict[str, Any] = {"iou_type": iou_type, "row": row, "chosen": row == chosen, **summary.loc[row, BINS]}
        record |= {f"AP_{side}": intervals.loc[(row, "AP"), side] for side in ("low", "high")}
        if row != LEARNED.name and LEARNED.name in summary.index:
            gains = tables.differences_from(row).loc[iou_type].loc[LEARNED.name]
            for column in GAINS:
                gain = gains.loc[column]
                record |= {f"gain_{column}": gain["difference"]}
                record |= {f"gain_{column}_{side}": gain[side] for side in ("low", "high")}
        records.append(record)
    return pd.DataFrame(records).round(3)


def selection_table(results: pd.DataFrame) -> str:
    """Formats of each detector the original scores, the row chosen on held-out images, the best on test, and learned
    fusion with its gains."""
    lines = []
    for (detector, iou_type), rows in results.groupby(KEYS, sort=False):
        own = rows.set_index("row")
        single = own.drop(index=[ORIGINAL.name, LEARNED.name], errors="ignore")
        kinds = {
            ORIGINAL.name: "",
            single.index[single["chosen"].astype(bool)][0]: ", chosen",
            single["AP"].idxmax(): ", best on test",
            LEARNED.name: "",
        }
        if single["AP"].idxmax() == single.index[single["chosen"].astype(bool)][0]:
            kinds[single["AP"].idxmax()] = ", chosen and best on test"
        for row, kind in kinds.items():
            values = own.loc[row]
            lines.append(
                [f"{detector}, {NAMES[iou_type]}: {row}{kind}", *(f"{values[c]:.1f}" for c in BINS), *_gains(values)]
            )
    header = ["row", *BINS, "learned: gain in AP", "in AP(0,10)"]
    return "\n\n".join([markdown(header, lines), _times(results), provenance_line(results)])


def _times(results: pd.DataFrame) -> str:
    """Returns a sentence about the time of each detector's comparison."""
    times = [
        f"{row['detector']}, {NAMES[row['iou_type']]}, {_seconds(row['seconds_holdout'])} + "
        f"{_seconds(row['seconds_select'])}"
        for row in results.drop_duplicates(KEYS).to_dict("records")
    ]
    return (
        "Processor time of the extraction of the held-out images, and of `select` with all its training: "
        f"{'; '.join(times)}."
    )


def _seconds(seconds: float) -> str:
    return "not measured" if pd.isna(seconds) else f"{seconds:,.0f} s"


def _gains(values: pd.Series) -> list[str]:
    """Returns the gains of learned fusion over a row with their intervals; empty for itself."""
    if pd.isna(values["gain_AP"]):
        return ["", ""]
    return [
        f"{values[f'gain_{c}']:+.1f} [{values[f'gain_{c}_low']:+.1f}, {values[f'gain_{c}_high']:+.1f}]"
        for c in ("AP", "AP(0,10)")
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="+", choices=["plain", "rfs", "cascade", "htc"])
    parser.add_argument("--caches", type=Path, default=ROOT / "data" / "select", help="folder of caches and heads")
    parser.add_argument("--iou-type", choices=list(NAMES), default="segm", help="mask AP or box AP")
    parser.add_argument("--methods", nargs="*", default=[], help="methods to try; all by default")
    parser.add_argument("--steps", nargs="+", type=int, default=SelectConfig.steps, help="of trained methods")
    options = parser.parse_args()
    main(options.detectors, options.caches, options.iou_type, options.methods, options.steps)
