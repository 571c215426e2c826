"""Plots of what objects are called; `fuse.plots` has the set-up of the examples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from extract.utils.errors import shortened
from fuse.defaults import TAIL
from fuse.detections import Detections
from fuse.evaluation.dataset import EvaluationDataset, load_annotations
from fuse.evaluation.outcomes import Outcomes, object_outcomes
from fuse.gallery import OUTCOMES, class_outcomes, draw_example, gained_images, image_reader, most_changed
from fuse.plots.axes import MAX_NAME, WIDTH, axes_or_new, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_HEIGHT = 0.2
"""Of a bar and its label in inches."""
OUTCOME_COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#bbbbbb")
"""Of named objects, those taken for a class of the head or for one of the tail, and those missed."""


def confusions(
    annotations: str | os.PathLike | dict,
    rows: Mapping[str, Detections],
    classes: pd.DataFrame,
    *,
    tail: float = TAIL,
    max_classes: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """Plots what the objects of tail classes are taken for, in each row: two rows are before and after calibration.

    >>> ax = fuse.plots.confusions(annotations, rows, classes)
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['zebra (4)  original', 'calibrated']

    The best detection on an object decides, see `fuse.evaluation.outcomes.Outcomes`.

    Args:
        annotations: an LVIS or COCO annotation file, or its content.
        rows: detections by name.
        classes: the class table, with the training instances.
        tail: bound of tail classes.
        max_classes: classes shown, those first of which the last row names the most objects more than the first row.
        ax: to draw into; None makes a new figure.
    """
    dataset = load_annotations(annotations)
    outcomes = {name: object_outcomes(dataset, row, classes, progress=True) for name, row in rows.items()}
    return draw_confusions(outcomes, classes, tail=tail, max_classes=max_classes, ax=ax)


def draw_confusions(
    outcomes: Mapping[str, Outcomes], classes: pd.DataFrame, *, tail: float, max_classes: int, ax: Axes | None = None
) -> Axes:
    """Plots `confusions` of outcomes that are known already; arguments as there."""
    is_tail = classes["instance_count"].to_numpy() < tail
    shares = [class_outcomes(one, is_tail) for one in outcomes.values()]
    shown = most_changed(shares[0], shares[-1], is_tail)[:max_classes]
    ax = axes_or_new(ax, 1.2 + ROW_HEIGHT * len(shown) * (len(outcomes) + 0.6))
    places = [c * (len(outcomes) + 0.6) + r for c in range(len(shown)) for r in range(len(outcomes))]
    values = np.array([share[label] for label in shown for share in shares]).reshape(-1, len(OUTCOMES))
    left = np.zeros(len(values))
    for i, name in enumerate(OUTCOMES):
        ax.barh(places, values[:, i], left=left, color=OUTCOME_COLOURS[i], label=name, height=0.85)
        left += values[:, i]
    names, counts = classes["name"].tolist(), classes["instance_count"].tolist()
    counted_names = [f"{shortened(names[c], MAX_NAME)} ({counts[c]:,})" for c in shown]
    is_narrow = ax.figure.bbox.width < WIDTH * ax.figure.dpi
    short = [shortened(row, MAX_NAME // 2 if is_narrow else MAX_NAME) for row in outcomes]
    labels = [f"{name}  {row}" if row is short[0] else row for name in counted_names for row in short]
    ax.set_yticks(places, labels, parse_math=False)
    ax.invert_yaxis()
    ax.set(xlabel="objects")
    return finish(ax)


def gallery(
    annotations: str | os.PathLike | dict,
    rows: Mapping[str, Detections],
    classes: pd.DataFrame,
    images: Mapping[int, np.ndarray] | str | os.PathLike,
    *,
    tail: float = TAIL,
    max_images: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Draws images side by side with what two rows call their objects, an image below the other.

    >>> ax = fuse.plots.gallery(annotations, rows, classes, {1: np.zeros((60, 80, 3), np.uint8)})
    >>> ax.images[0].get_array().shape[2]
    3

    Args:
        annotations, classes, tail: as of `confusions`.
        rows: two rows of detections by name: before and after. Masks are drawn where there are any.
        images: the folder of the images, of which those with the largest gains in tail classes are drawn; or pixels
            (H, W, 3) uint8 RGB by image id, in the order to draw.
        max_images: drawn from a folder.
        ax: to draw into; None makes a new figure.

    Raises ValueError for another number of rows, no image, or one that the annotations lack, and FileNotFoundError for
    one that is not in the folder.
    """
    if len(rows) != 2:
        raise ValueError(f"rows are {len(rows)}, expected 2: before and after")
    dataset = load_annotations(annotations)
    if isinstance(images, str | os.PathLike):
        images = _images_with_gains(dataset, rows, classes, Path(images), tail, max_images)
    if not images:
        raise ValueError("images has none, expected at least 1 image")
    dataset = load_annotations(dataset, images)
    kept = [row.take(np.isin(row.image_ids, list(images))) for row in rows.values()]
    outcomes = [object_outcomes(dataset, row, classes) for row in kept]
    names = classes["name"].tolist()
    drawn = [draw_example(pixels, image_id, outcomes, names, tuple(rows)) for image_id, pixels in images.items()]
    width = max(image.width for image in drawn)
    padded = [
        np.pad(np.asarray(image), ((0, 8), (0, width - image.width), (0, 0)), constant_values=255) for image in drawn
    ]
    joined = np.concatenate(padded)
    ax = axes_or_new(ax, WIDTH * joined.shape[0] / joined.shape[1])
    ax.imshow(joined)
    ax.set_axis_off()
    return ax


def _images_with_gains(
    dataset: EvaluationDataset,
    rows: Mapping[str, Detections],
    classes: pd.DataFrame,
    folder: Path,
    tail: float,
    limit: int,
) -> dict[int, np.ndarray]:
    """Reads the images with the largest gains in tail classes; the first ones with objects if none has a gain."""
    before, after = (object_outcomes(dataset, row, classes, progress=True) for row in rows.values())
    is_tail = classes["instance_count"].to_numpy() < tail
    chosen = gained_images(before, after, is_tail, limit) or np.unique(after.image_ids)[:limit].tolist()
    read = image_reader(dataset, folder, chosen)
    return {image_id: read(image_id) for image_id in chosen} if read else {}
