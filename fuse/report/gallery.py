"""The gallery of the report: images with the largest gains and losses, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

from extract.utils.prefetch import prefetch
from fuse.drawing import class_colours, draw_detections
from fuse.gallery import best_detections, gained_images, lost_images
from fuse.report.inputs import ReportInputs
from fuse.report.webp import data_url

MAX_GAINED, MAX_LOST = 8, 4
"""Images in the gallery."""
EDGES = (720, 540, 400, 300, 200)
"""Longer edge of an image in pixels: the first with which the gallery is not larger than it may be."""
QUALITY = 80
READERS = 2
"""Threads that read images, and images that they read ahead."""


class Example(NamedTuple):
    """An image of the gallery: its id, its two halves as data URLs, and what changed, a sentence for each object."""

    id: int | str
    drawn: list[str]
    changes: list[str]


def gallery(inputs: ReportInputs, max_bytes: float) -> dict[str, list[Example]]:
    """Returns, by title, the images with the largest gains in tail classes, then those with the largest losses.

    Images are as large as `max_bytes`, of all together in the page, allows.
    """
    if inputs.read_image is None:
        return {}
    before, after = (inputs.outcomes[row] for row in inputs.rows)
    groups = {
        "Tail objects that are named now": gained_images(before, after, inputs.is_tail, MAX_GAINED),
        "Worst losses": lost_images(before, after, MAX_LOST),
    }
    chosen = list(dict.fromkeys(image_id for ids in groups.values() for image_id in ids))
    with closing(prefetch(inputs.read_image, chosen, threads=READERS, depth=READERS)) as images:
        halves = {image_id: _halves(inputs, image_id, pixels) for image_id, pixels in zip(chosen, images, strict=True)}
    urls = _encode(halves, max_bytes)
    return {
        title: [Example(inputs.dataset.shown_id(i), urls[i], list(_changes(inputs, i))) for i in ids]
        for title, ids in groups.items()
        if ids
    }


def _halves(inputs: ReportInputs, image_id: int, pixels: np.ndarray) -> list[PILImage.Image]:
    """Returns an image with the best detection on each object, before and after, of the largest of `EDGES`."""
    found = [best_detections(inputs.outcomes[row], image_id) for row in inputs.rows]
    colours = class_colours(np.concatenate([half.detections.labels for half in found]))
    names = inputs.classes["name"].tolist()
    drawn = [PILImage.fromarray(draw_detections(pixels, *half, names, colours=colours)) for half in found]
    return [_reduced(image, EDGES[0]) for image in drawn]


def _encode(halves: Mapping[int, Sequence[PILImage.Image]], max_bytes: float) -> dict[int, list[str]]:
    """Returns data URLs of the halves of each image, of the largest of `EDGES` with which they fit into the page."""
    urls: dict[int, list[str]] = {}
    for edge in EDGES:
        urls = {i: [data_url(_reduced(image, edge), QUALITY) for image in pair] for i, pair in halves.items()}
        if sum(len(url) for pair in urls.values() for url in pair) <= max_bytes:
            break
    return urls


def _reduced(image: PILImage.Image, edge: int) -> PILImage.Image:
    """Returns an image whose longer edge has at most `edge` pixels."""
    reduced = image.copy()
    reduced.thumbnail((edge, edge))
    return reduced


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
