"""The tables, the details of classes and the gallery of the report, as values for the template."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image as PILImage

from extract.data.bins import bin_names
from fuse.detections import best_first
from fuse.drawing import class_colours, draw_detections
from fuse.evaluation.outcomes import Outcomes
from fuse.evaluation.row_comparison import SUFFIXES
from fuse.gallery import best_detections, class_outcomes, gained_images, look_alikes, lost_images, most_changed
from fuse.report.inputs import ReportInputs

MAX_CHANGED = 15
"""Classes listed as gained, and as lost."""
MAX_CONFUSED = 30
"""Tail classes listed with their look-alikes."""
MAX_DETECTIONS = 5
"""Detections listed of each class and row, the best ones."""
MAX_GAINED, MAX_LOST = 8, 4
"""Images in the gallery."""
MAX_EDGE = 720
"""Longer edge of an image of the gallery in pixels: twelve of two halves have a megabyte or two."""
ERROR_COLUMNS = {
    "confused": "taken for another class",
    "up": "for a more frequent one",
    "missed": "missed",
    "ECE": "calibration error",
}
"""Columns of `fuse.error_table` for each bin, shares of its objects in percent, and their titles."""
QUALITY = 80
"""Of WebP."""


class Cell(NamedTuple):
    """A cell of the comparison table: its text, its value for sorting, its interval as text, and a mark."""

    text: str
    value: float
    interval: str = ""
    within_noise: bool = False


def comparison_table(inputs: ReportInputs, iou_type: str) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Returns the names of the columns, and each row's name with its cells. Columns without any value are left out."""
    table = inputs.summary.loc[iou_type]
    names = [name for name in table if not str(name).endswith(SUFFIXES) and table[name].notna().any()]
    return names, [(str(row), [_cell(table.loc[row], name) for name in names]) for row in table.index]


def _cell(row: pd.Series, name: str) -> Cell:
    value = float(row[name])
    if np.isnan(value):
        return Cell("–", -1.0)
    low, high = (row.get(f"{name}{side}", np.nan) for side in ("_low", "_high"))
    interval = "" if pd.isna(low) else f"{low:.1f} – {high:.1f}"
    noise = row.get(f"{name}_within_noise", False)
    return Cell(f"{value:.1f}", value, interval, not pd.isna(noise) and bool(noise))


def changed_classes(inputs: ReportInputs, iou_type: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the classes whose AP rose most, and those whose AP fell most."""
    before, after = (inputs.tables(iou_type)[row] for row in inputs.rows)
    table = after[["name", "instance_count"]].assign(before=before["AP"], after=after["AP"]).dropna()
    table["change"] = table["after"] - table["before"]
    ordered = table.sort_values("change", kind="stable")
    gained = ordered[ordered["change"] > 0].iloc[::-1].head(MAX_CHANGED)
    lost = ordered[ordered["change"] < 0].head(MAX_CHANGED)
    return gained.to_dict("records"), lost.to_dict("records")


def error_shares(inputs: ReportInputs, iou_type: str) -> list[dict[str, Any]]:
    """Returns the cells of `ERROR_COLUMNS`, before → after, for each bin and for all classes; [] without errors."""
    if inputs.errors is None:
        return []
    before, after = (inputs.errors.loc[iou_type, row] for row in inputs.rows)
    rows = []
    for name in (*bin_names(inputs.bins), ""):
        pairs = [[one.get(f"{column}{name}", np.nan) for one in (before, after)] for column in ERROR_COLUMNS]
        if not np.isnan(pairs).all():
            rows.append({"name": name or "all", "cells": [_change(*pair) for pair in pairs]})
    return rows


def _change(before: float, after: float) -> Cell:
    if np.isnan(before) and np.isnan(after):
        return Cell("–", -1.0)
    return Cell(f"{before:.1f} → {after:.1f}", after)


def confused_classes(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Returns the tail classes with most objects named now, what they were taken for, and what they are taken for."""
    before, after = (inputs.outcomes[row] for row in inputs.rows)
    counts = [class_outcomes(one, inputs.is_tail) for one in (before, after)]
    listed = most_changed(counts[0], counts[1], inputs.is_tail)[:MAX_CONFUSED]
    return [
        {
            "name": inputs.classes["name"].iloc[label],
            "figures": [
                int(inputs.classes["instance_count"].iloc[label]),
                int(counts[0][label].sum()),
                *(int(one[label, kind]) for kind in (0, -1) for one in counts),
            ],
            "taken_for": [_names_of(inputs, look_alikes(one, label)) for one in (before, after)],
        }
        for label in listed
    ]


def _names_of(inputs: ReportInputs, found: list[tuple[int, int]]) -> str:
    return ", ".join(f"{inputs.classes['name'].iloc[label]} ×{count}" for label, count in found)


def class_details(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Returns, for each class, what a click shows: its counts, its AP and its best detections, before and after."""
    details: list[dict[str, Any]] = [
        {"name": name, "count": int(count), "ap": {}, "found": []}
        for name, count in zip(inputs.classes["name"], inputs.classes["instance_count"], strict=True)
    ]
    for iou_type in inputs.summary.index.unique("iou_type"):
        aps = [inputs.tables(iou_type)[row]["AP"].tolist() for row in inputs.rows]
        for detail, *values in zip(details, *aps, strict=True):
            detail["ap"][iou_type] = [None if np.isnan(value) else round(value, 1) for value in values]
    for row in inputs.rows:
        for detail, found in zip(details, _best_of_classes(inputs, inputs.outcomes[row]), strict=True):
            detail["found"].append(found)
    return details


def _best_of_classes(inputs: ReportInputs, outcomes: Outcomes) -> Iterator[list[tuple[Any, float, str]]]:
    """Yields the best detections of each class: image id, score, and what is there."""
    names = inputs.classes["name"].tolist()
    order = best_first(outcomes.found_labels, outcomes.detections.scores)
    starts = np.searchsorted(outcomes.found_labels[order], np.arange(len(names) + 1))
    for label, (first, last) in enumerate(pairwise(starts.tolist())):
        listed, found = order[first : min(last, first + MAX_DETECTIONS)], []
        for i in listed.tolist():
            owner = outcomes.objects[i]
            if owner < 0:
                there = "no annotated object"
            elif outcomes.labels[owner] != label:
                there = f"is {names[outcomes.labels[owner]]}"
            else:
                there = "right" if outcomes.best_own[owner] == i else "a second time"
            image_id = inputs.dataset.shown_id(int(outcomes.detections.image_ids[i]))
            found.append((image_id, round(float(outcomes.detections.scores[i]), 3), there))
        yield found


def gallery(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Returns the images with the largest gains in tail classes, then those with the largest losses."""
    if inputs.read_image is None:
        return []
    before, after = (inputs.outcomes[row] for row in inputs.rows)
    groups = {
        "Tail objects that are named now": gained_images(before, after, inputs.is_tail, MAX_GAINED),
        "Worst losses": lost_images(before, after, MAX_LOST),
    }
    return [
        {"title": title, "images": [_example(inputs, image_id) for image_id in image_ids]}
        for title, image_ids in groups.items()
        if image_ids
    ]


def _example(inputs: ReportInputs, image_id: int) -> dict[str, Any]:
    """Returns an image's two halves and the sentences that describe what changed."""
    assert inputs.read_image is not None
    pixels, names = inputs.read_image(image_id), inputs.classes["name"].tolist()
    halves = [best_detections(inputs.outcomes[row], image_id) for row in inputs.rows]
    colours = class_colours(np.concatenate([half.detections.labels for half in halves]))
    drawn = [_webp(draw_detections(pixels, *half, names, colours=colours)) for half in halves]
    return {"id": inputs.dataset.shown_id(image_id), "drawn": drawn, "changes": list(_changes(inputs, image_id))}


def _changes(inputs: ReportInputs, image_id: int) -> Iterator[str]:
    """Yields a sentence for each object of an image that one of the rows names and the other does not."""
    before, after = (inputs.outcomes[row] for row in inputs.rows)
    names, counts = inputs.classes["name"].tolist(), inputs.classes["instance_count"].tolist()
    for i in np.flatnonzero((after.image_ids == image_id) & (before.named != after.named)):
        other = (before if after.named[i] else after).taken_for[i]
        was = "missed" if other < 0 else f"taken for {names[other]}"
        label = after.labels[i]
        change = f"{was} before, named now" if after.named[i] else f"named before, {was} now"
        yield f"{names[label]} ({counts[label]:,} training instances): {change}"


def _webp(pixels: np.ndarray) -> str:
    """Returns an image as a data URL."""
    image, file = PILImage.fromarray(pixels), io.BytesIO()
    image.thumbnail((MAX_EDGE, MAX_EDGE))
    image.save(file, "webp", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
