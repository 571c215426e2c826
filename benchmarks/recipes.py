"""AP and training time of the paper's recipe and of the default on hidden features, for several detectors and seeds.

    python -m benchmarks.recipes data/plain data/rfs data/quarter data/cascade data/htc
    python -m benchmarks.recipes data/plain --seeds 0

The arguments are folders with `train.zarr` and `val.zarr` of level pooled, as `make demo RECIPE=paper` leaves
them. The train cache is converted to level hidden, in a temporary folder. For every seed this trains

* `paper`: head type 3fc_ft on pooled features, all foreground RoIs, 4,000 steps;
* `3fc_ft` and `3fc_lowrank` on hidden features: 4 foreground RoIs per class and image, 3,000 steps. The one that head
  type auto chooses on held-out training images is the default; its time includes the choice.

Heads on hidden features are evaluated as they are deployed, with the first layer folded in. Results are appended to
`benchmarks/results/recipes.csv`; what is there already is not computed again. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

import calib
from benchmarks.evaluate import evaluate_fusions
from benchmarks.provenance import provenance, read_results
from benchmarks.tables import markdown, provenance_line
from calib.choice import CANDIDATES
from calib.config import Config
from calib.deployment import on_pooled_features
from calib.heads import Head
from extract import RoICache, open_cache
from extract.command_configs import ConvertConfig
from extract.convert import run as convert
from fuse.config import FusionConfig
from fuse.fusion import Fusion
from fuse.scores import FusionMode

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "recipes.csv"
PAPER_STEPS, STEPS = 4000, 3000
MODES: tuple[FusionMode, ...] = ("calibrated", "avg", "cat")
IOU_TYPES = {"box": "bbox", "mask": "segm"}
COLUMNS = [
    (iou_type, mode, column)
    for iou_type in IOU_TYPES
    for mode, column in (
        ("avg", "AP"),
        ("cat", "AP"),
        ("cat", "AP(0,10)"),
    )
]


class Trained(NamedTuple):
    """A head on pooled features, its training's processor time, and whether auto chose its type."""

    head: Head
    seconds: float
    chosen: bool


def main(folders: Sequence[Path], seeds: Sequence[int]) -> None:
    """Adds the missing rows of every folder's detector."""
    for folder in folders:
        train, val = (open_cache(str(folder / f"{split}.zarr")) for split in ("train", "val"))
        done = measured(folder.name)
        for seed in seeds:
            if ("paper", seed) not in done:
                append(evaluate(folder.name, seed, {"paper": train_paper(train, seed)}, val))
        missing = [seed for seed in seeds if not {(name, seed) for name in CANDIDATES} <= done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            hidden = convert(ConvertConfig(train.url, f"{scratch}/hidden.zarr", device="cpu"))
            for seed in missing:
                append(evaluate(folder.name, seed, train_on_hidden(hidden, val, seed), val))


def train_paper(cache: RoICache, seed: int) -> Trained:
    """Trains the paper's recipe."""
    return timed(cache, head_type="3fc_ft", steps=PAPER_STEPS, seed=seed)


def train_on_hidden(hidden: RoICache, val: RoICache, seed: int) -> dict[str, Trained]:
    """Trains both candidates on hidden features, one of them by head type auto."""
    default = timed(hidden, steps=STEPS, seed=seed)
    (other,) = (name for name in CANDIDATES if name != default.head.name)
    rois_per_class = default.head.info.config["rois_per_class"]
    trained = {default.head.name: default._replace(chosen=True)}
    trained[other] = timed(hidden, steps=STEPS, seed=seed, head_type=other, rois_per_class=rois_per_class)
    layers = [hidden.fc_layers(stage)[0] for stage in range(len(hidden.stages))]
    shape = val.fields["features"][1:]
    return {name: one._replace(head=on_pooled_features(one.head, layers, shape)) for name, one in trained.items()}


def timed(cache: RoICache, **options: Any) -> Trained:
    """Trains a head; `options` are fields of `calib.Config`."""
    started = time.process_time()
    head = calib.train_head(cache, device="cpu", **options)
    return Trained(head, time.process_time() - started, False)


def evaluate(detector: str, seed: int, heads: dict[str, Trained], val: RoICache) -> pd.DataFrame:
    """Returns AP of boxes and masks of every recipe and mode."""
    names = {(recipe, mode): f"{recipe} {mode}" for recipe in heads for mode in MODES}
    fusions = {
        names[recipe, mode]: Fusion.for_cache(val, FusionConfig(mode=mode, score_threshold=0.0), heads[recipe].head)
        for recipe, mode in names
    }
    iou_types = ("bbox", "segm") if "masks" in val.fields else ("bbox",)
    summary = evaluate_fusions(val, fusions, iou_types)
    rows = [
        {
            "detector": detector,
            "seed": seed,
            "recipe": recipe,
            "chosen": heads[recipe].chosen,
            "seconds": round(heads[recipe].seconds, 1),
            "iou_type": iou_type,
            "mode": mode,
            **summary.loc[iou_type].loc[name].iloc[:6].round(3).to_dict(),
        }
        for iou_type in iou_types
        for (recipe, mode), name in names.items()
    ]
    return pd.DataFrame(rows).assign(**provenance())


def measured(detector: str) -> set[tuple[str, int]]:
    """Returns recipes and seeds of a detector with results."""
    if not RESULTS.exists():
        return set()
    table = read_results(RESULTS).query("detector == @detector")
    return set(zip(table["recipe"], table["seed"], strict=True))


def recipes_table(results: pd.DataFrame) -> str:
    """Formats, per detector, means over seeds of the paper's recipe and the default, and their paired difference.

    The difference has a 95% interval of Student's t over seeds, where there are at least two.
    """
    header = ["detector", "recipe", "head type", "seeds", "training", *(" ".join(column) for column in COLUMNS)]
    rows: list[list[str]] = []
    for detector, table in results.groupby("detector", sort=False):
        paper, default = (_by_seed(table[mask]) for mask in (table["recipe"] == "paper", table["chosen"]))
        types = ", ".join(sorted(set(table[table["chosen"]]["recipe"])))
        for recipe, head_type, values in (("paper", "3fc_ft", paper), ("default", types, default)):
            seconds = values.pop("seconds").mean()
            means = [f"{mean:.1f}" for mean in values.mean()]
            rows.append([str(detector), recipe, head_type, str(len(values)), f"{seconds:.0f} s", *means])
        rows.append(["", "difference", "", "", "", *map(_interval, (default - paper).T.to_numpy())])
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def default_rows(results: pd.DataFrame, detector: str, modes: Mapping[str, str], iou_type: str) -> pd.DataFrame:
    """Returns a detector's AP with the default recipe, means over seeds: a `row` for each name in `modes` → mode."""
    chosen = results[(results["detector"] == detector) & results["chosen"] & (results["iou_type"] == iou_type)]
    means = chosen.groupby("mode").mean(numeric_only=True)
    return pd.DataFrame([{"row": name, **means.loc[mode]} for name, mode in modes.items()])


def _by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per seed: training seconds, and the `COLUMNS`."""
    columns: dict[Any, pd.Series] = {"seconds": table.groupby("seed")["seconds"].first()}
    for iou_type, mode, column in COLUMNS:
        part = table[(table["iou_type"] == IOU_TYPES[iou_type]) & (table["mode"] == mode)]
        columns[iou_type, mode, column] = part.set_index("seed")[column]
    return pd.DataFrame(columns)


def _interval(differences: np.ndarray) -> str:
    """Formats the mean of paired differences (n,) and half the width of its 95% interval."""
    if len(differences) < 2:
        return f"{differences.mean():+.1f}"
    half = student_t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.1f} ± {half:.1f}"


def append(rows: pd.DataFrame) -> None:
    """Adds rows to the results."""
    old = [read_results(RESULTS)] if RESULTS.exists() else []
    pd.concat([*old, rows]).to_csv(RESULTS, index=False)
    print(rows.to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[Config.seed, Config.seed + 1, Config.seed + 2])
    arguments = parser.parse_args()
    main(arguments.folders, arguments.seeds)
