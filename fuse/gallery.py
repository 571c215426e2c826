"""Chooses what shows a calibration best: classes whose objects are named now, and images with gains and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from extract.data.image_files import find_image
from extract.data.images import SizedReader
from extract.detectors.base import ImageDetections
from fuse.drawing import MaskedDetections, draw_pair
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.outcomes import Outcomes

ReadImage = Callable[[int], np.ndarray]
"""Image id → pixels (H, W, 3) uint8 RGB."""
OUTCOMES = ("named", "taken for a head class", "taken for a tail class", "missed")
"""Of an object, as `class_outcomes` counts them."""


def class_outcomes(outcomes: Outcomes, is_tail: np.ndarray) -> np.ndarray:
    """Returns (K, 4) int64: how many objects of each class have each of `OUTCOMES`; `is_tail` (K,) bool."""
    taken, labels = outcomes.taken_for, outcomes.labels
    kind = np.where(taken < 0, 3, np.where(taken == labels, 0, np.where(is_tail[taken], 2, 1)))
    return np.bincount(labels * len(OUTCOMES) + kind, minlength=len(is_tail) * len(OUTCOMES)).reshape(-1, len(OUTCOMES))


def most_changed(before: np.ndarray, after: np.ndarray, is_tail: np.ndarray) -> list[int]:
    """Returns the tail classes with objects, by the number of objects named more after than before.

    `before` and `after` (K, 4) of `class_outcomes`, `is_tail` (K,) bool. Of equal gains, more objects come first.
    """
    objects = after.sum(axis=1)
    order = np.lexsort((np.arange(len(objects)), -objects, before[:, 0] - after[:, 0]))
    return [label for label in order.tolist() if is_tail[label] and objects[label]]


def look_alikes(outcomes: Outcomes, label: int, limit: int = 3) -> list[tuple[int, int]]:
    """Returns the classes that objects of a class are taken for, most often first: (class, number of objects)."""
    taken = outcomes.taken_for[(outcomes.labels == label) & (outcomes.taken_for >= 0) & ~outcomes.named]
    classes, counts = np.unique(taken, return_counts=True)
    order = np.lexsort((classes, -counts))[:limit]
    return list(zip(classes[order].tolist(), counts[order].tolist(), strict=True))


def gained_images(before: Outcomes, after: Outcomes, is_tail: np.ndarray, limit: int) -> list[int]:
    """Returns ids of the images with most objects of tail classes named after and not before, less those lost.

    Of equal gains, the image with more objects named comes first. Images without gain are left out.
    """
    change = np.where(is_tail[after.labels], after.named.astype(int) - before.named, 0)
    return _top_images(after.image_ids, change, after.named, limit)


def lost_images(before: Outcomes, after: Outcomes, limit: int) -> list[int]:
    """Returns ids of the images with most objects, of all classes, named before and not after, less those gained."""
    return _top_images(after.image_ids, before.named.astype(int) - after.named, before.named, limit)


def image_reader(
    dataset: EvaluationDataset, folder: Path | None, image_ids: Iterable[int], allow_outside: bool = False
) -> ReadImage | None:
    """Returns what reads images of a dataset in a folder; None without one. `allow_outside` is that of `find_image`.

    Raises FileNotFoundError for an image that is not in the folder, before anything heavy begins.
    """
    if folder is None:
        return None
    names = dataset.file_names()
    paths = {image_id: find_image(folder, names[image_id], allow_outside) for image_id in map(int, image_ids)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    read = SizedReader()

    def read_image(image_id: int) -> np.ndarray:
        size = sizes[image_id]
        return read(paths[image_id], size if all(size) else None)

    return read_image


def draw_example(
    pixels: np.ndarray, image_id: int, outcomes: Sequence[Outcomes], names: Sequence[str], titles: tuple[str, ...]
) -> PILImage.Image:
    """Draws an image with the best detection on each of its objects, before and after, side by side.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        image_id: of the image.
        outcomes: before and after.
        names: of the K classes.
        titles: of the two halves.
    """
    before, after = (best_detections(one, image_id) for one in outcomes)
    return draw_pair(
        pixels,
        before,
        after,
        names,
        max_drawn=max(len(before.detections.scores), len(after.detections.scores)),
        titles=(titles[0], titles[1]),
    )


def best_detections(outcomes: Outcomes, image_id: int) -> MaskedDetections:
    """Returns the best detection on each object of an image, by falling score; masks where the detections have them."""
    best = outcomes.best[(outcomes.image_ids == image_id) & (outcomes.best >= 0)]
    best = best[np.argsort(-outcomes.detections.scores[best], kind="stable")]
    own, labels = outcomes.detections.take(best), outcomes.found_labels[best]
    masks = None
    if own.rles:
        from hotcoco import mask

        masks = mask.decode(own.rles).transpose(2, 0, 1).astype(bool)
    return MaskedDetections(ImageDetections(own.boxes, labels, own.scores), masks)


def _top_images(image_ids: np.ndarray, change: np.ndarray, named: np.ndarray, limit: int) -> list[int]:
    """Returns ids of the images with the highest sum of `change` (G,) above 0."""
    images, owner = np.unique(image_ids, return_inverse=True)
    sums = np.bincount(owner, change, len(images))
    order = np.lexsort((images, -np.bincount(owner, named, len(images)), -sums))[:limit]
    return images[order[sums[order] > 0]].tolist()
