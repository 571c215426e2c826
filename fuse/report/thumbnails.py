"""Thumbnails of the best detections of each class, as many as the page has place for; those of rare classes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

from extract.crops import crop_around
from extract.utils.prefetch import prefetch
from extract.utils.progress import FIRST_LINE, progress_bar
from fuse.drawing import COLOURS
from fuse.report.inputs import ReportInputs
from fuse.report.webp import data_url

EDGE = 72
"""Of a thumbnail in pixels."""
QUALITY = 60
MAX_THUMBNAILS = 1200
READERS, IMAGES_AHEAD = 2, 4
"""Threads that read images, and images that they read ahead."""

Place = tuple[int, tuple[int, ...]]
"""Image id and box in whole pixels."""
Best = Mapping[str, Sequence[Sequence[int]]]
"""By row, for each class the detections to show, best first."""


class Thumbnails(NamedTuple):
    """Thumbnails as data URLs, and for each row the positions among them by detection."""

    urls: list[str]
    positions: dict[str, dict[int, int]]


def make_thumbnails(inputs: ReportInputs, best: Best, max_bytes: float) -> Thumbnails:
    """Draws thumbnails of detections; none without images.

    Args:
        inputs: of the report.
        best: of `best_of_classes`.
        max_bytes: of all thumbnails together, in the page; most have one to two thousand.

    Of each class the best detection comes first, classes by ascending training instances. Detections at the same place
    share a thumbnail.
    """
    if inputs.read_image is None or max_bytes <= 0:
        return Thumbnails([], {row: {} for row in best})
    places = {row: {i: _place(inputs, row, i) for of in classes for i in of} for row, classes in best.items()}
    wanted = list(islice(_by_priority(inputs, best, places), MAX_THUMBNAILS))
    drawn = _draw(inputs, wanted)
    kept = wanted[: np.searchsorted(np.cumsum([len(drawn[place]) for place in wanted]), max_bytes, side="right")]
    order = {place: position for position, place in enumerate(kept)}
    positions = {row: {i: order[at] for i, at in of_row.items() if at in order} for row, of_row in places.items()}
    return Thumbnails([drawn[place] for place in kept], positions)


def _place(inputs: ReportInputs, row: str, detection: int) -> Place:
    detections = inputs.outcomes[row].detections
    box = np.round(detections.boxes[detection]).astype(int).tolist()
    return int(detections.image_ids[detection]), tuple(box)


def _by_priority(inputs: ReportInputs, best: Best, places: Mapping[str, Mapping[int, Place]]) -> Iterator[Place]:
    """Yields the places of all detections, each once: the first of every class, then the second, and so on."""
    seen: set[Place] = set()
    order = np.argsort(inputs.classes["instance_count"].to_numpy(), kind="stable").tolist()
    most = max((len(of) for classes in best.values() for of in classes), default=0)
    for rank in range(most):
        for label in order:
            for row, classes in best.items():
                for detection in classes[label][rank : rank + 1]:
                    place = places[row][detection]
                    if place not in seen:
                        seen.add(place)
                        yield place


def _draw(inputs: ReportInputs, places: Sequence[Place]) -> dict[Place, str]:
    """Returns the thumbnail of each place; each image is read once."""
    read = inputs.read_image
    assert read is not None
    by_image: dict[int, list[Place]] = {}
    for place in places:
        by_image.setdefault(place[0], []).append(place)

    def of_image(image_id: int) -> list[str]:
        image = PILImage.fromarray(read(image_id))
        return [data_url(_thumbnail(image, np.array(box)), QUALITY) for _, box in by_image[image_id]]

    drawn: dict[Place, str] = {}
    with closing(prefetch(of_image, by_image, threads=READERS, depth=IMAGES_AHEAD)) as images:
        shown = progress_bar(images, total=len(by_image), desc="thumbnails", unit="image", delay=FIRST_LINE)
        for own, urls in zip(by_image.values(), shown, strict=True):
            drawn |= zip(own, urls, strict=True)
    return drawn


def _thumbnail(image: PILImage.Image, box: np.ndarray) -> PILImage.Image:
    """Returns a box (4,) xyxy with its surroundings; results of other tools may have boxes far outside of the image."""
    inside = np.clip(box, 0, np.tile(image.size, 2))
    return crop_around(image, inside[None], EDGE, COLOURS[:1])
