"""Tables 1 and 3: classes by their number of training instances, and the recall of the proposals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.paper.figures import CLASS_COLUMNS
from benchmarks.paper.inputs import ALL_PROPOSALS, check_inputs, open_or_extract
from benchmarks.paper.scores import BASELINE, measure
from benchmarks.paper.setups import ROOT, Setup
from extract.data.annotations import read_annotations
from extract.data.bins import bin_counts
from extract.recall import proposal_recall

LVIS = "LVIS v0.5"
LVIS_COUNTS = ROOT / "benchmarks" / "data" / "lvis_v0.5_class_counts.json"


def class_table(setup: Setup) -> pd.DataFrame:
    """Returns Table 1: classes per bin of all classes with training instances, and of those that val has, too."""
    setup.check()
    train, val = (read_annotations(setup.annotations[split]) for split in ("train", "val"))
    in_val = train.classes["category_id"].isin(val.classes["category_id"].to_numpy()[np.unique(val.labels)])
    return _class_rows(train.classes["instance_count"].to_numpy(), in_val.to_numpy())


def lvis_class_table(counts: Path = LVIS_COUNTS) -> pd.DataFrame:
    """Returns Table 1 from the committed statistics of LVIS v0.5."""
    content = json.loads(counts.read_text())
    classes = pd.DataFrame(content["categories"])
    return _class_rows(classes["instance_count"].to_numpy(), classes["val_instance_count"].to_numpy() > 0)


def _class_rows(train_instances: np.ndarray, in_val: np.ndarray) -> pd.DataFrame:
    """Returns the classes per bin; `train_instances` (K,), `in_val` (K,) bool."""
    rows = {
        "train": train_instances[train_instances > 0],
        "train-on-val": train_instances[in_val & (train_instances > 0)],
    }
    counts = [[*bin_counts(values), len(values)] for values in rows.values()]
    return pd.DataFrame(counts, columns=CLASS_COLUMNS).assign(row=list(rows))[["row", *CLASS_COLUMNS]]


def recall_table(setup: Setup) -> pd.DataFrame:
    """Returns Table 3: by bin the objects, mask AP at score threshold 0 and average recall of the proposals."""
    check_inputs(setup, ["plain"])
    cache = open_or_extract(setup, "plain", "val", proposals=ALL_PROPOSALS)
    recall = proposal_recall(cache, read_annotations(setup.annotations["val"])).astype({"objects": "int64"})
    ap = measure(setup, [BASELINE]).iloc[0]
    recall.insert(1, "AP", [ap["AP" if name == "all" else f"AP{name}"] for name in recall.index])
    return recall.rename_axis("row").reset_index().assign(detector="plain")
