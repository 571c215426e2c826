"""A contact sheet: RoIs cut out of their images, in rows by class, by bin of training instances or by label.

Below each RoI is the class that the detector's own classifier gives it. Where the detector's classes are in another
order than the class table, these names are wrong throughout; shifted boxes miss their objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from extract.cache.reader import RoICache
from extract.class_scores import detector_scores
from extract.command_configs import RowKind
from extract.crops import crop_around
from extract.data.annotations import Annotations, read_annotations
from extract.data.image_files import find_image
from extract.data.images import SizedReader
from extract.roi_rows import RoIRow, choose_rows
from extract.utils.errors import shortened
from extract.utils.progress import progress_bar

TILE, GAP, MARGIN = 112, 8, 10
"""Edge of a tile, and spaces, in pixels."""
FONT_SIZE, LINE = 11, 14
MIN_WIDTH = 400
"""Of a sheet, so that its title and legend fit above the first row."""
MAX_NAME = 18
"""Characters of a name below a tile."""
PROPOSAL, BOX = "#0072b2", "#e69f00"
"""Colours of the proposal, whose features are in the cache, and of the refined box."""
INK, RIGHT, WRONG = "#222222", "#00714f", "#c0392b"
LEGEND = (
    "Blue: proposal; orange: refined box. Below: the class of highest score by the detector's own classifier, "
    "red where the label is another one."
)


class Tile(NamedTuple):
    """A RoI and what is drawn of it.

    Attributes:
        image: position of its image in the cache.
        proposal, box: (4,) xyxy in pixels of the image.
        caption: what is written below it.
        own: the class that the detector gives it, and its score, as text.
        is_right: whether that class is its label; None for RoIs that are no object.
    """

    image: int
    proposal: np.ndarray
    box: np.ndarray
    caption: str
    own: str
    is_right: bool | None


def contact_sheet(
    cache: RoICache,
    annotations: str | Path | Annotations,
    images: str | Path,
    *,
    by: RowKind = "class",
    classes: Sequence[str] = (),
    max_rows: int = 30,
    columns: int = 8,
    allow_outside: bool = False,
) -> PILImage.Image:
    """Draws RoIs of a cache, cut out of their images, a row for each class, bin of training instances or label.

    Example: `extract.contact_sheet(extract.open_cache("val.zarr"), "val.json", "val/")`

    Args:
        cache: of any split and feature level.
        annotations: the annotation file that it was extracted with, for the names of the image files.
        images: folder that these names are relative to.
        by: "class", from the rarest to the most frequent; "bin" of training instances; "label": objects, background
            and ignored RoIs. Of each object, the RoI of highest IoU is shown.
        classes: names of the classes to show; by default all, or an even choice if they are more than `max_rows`.
        max_rows: rows, at most, where `classes` does not name them.
        columns: RoIs per row, drawn at random but the same each time.
        allow_outside: read images whose file names lead out of the folder.

    Raises:
        ValueError: unknown names of classes, an image of the cache that the annotations lack or of another size.
        FileNotFoundError: an image that is not in the folder.
    """
    if not isinstance(annotations, Annotations):
        annotations = read_annotations(annotations, images=Path(images), allow_outside=allow_outside)
    rows, note = choose_rows(cache, by, classes, max_rows, columns)
    tiles = [_tiles(cache, row, by) for row in rows]
    cuts = _cut_all(cache, annotations, Path(images), [tile for row in tiles for tile in row], allow_outside)
    return _draw(f"{cache.url} ({cache.split}). {note}", rows, tiles, cuts)


def _tiles(cache: RoICache, row: RoIRow, by: RowKind) -> list[Tile]:
    """Returns the tiles of a row of RoIs."""
    if not len(row.rois):
        return []
    labels = cache.take("labels", row.rois)[:, 0]
    own, scores = _own_classes(cache, row.rois)
    owners = np.searchsorted(cache.offsets, row.rois, side="right") - 1
    proposals, boxes = cache.take("proposals", row.rois)[:, 0], cache.take("boxes", row.rois)
    is_object = (labels >= 0) & (labels < cache.num_classes)
    if boxes.ndim == 3:
        boxes = boxes[np.arange(len(boxes)), np.where(is_object, labels, own)]
    names, image_ids = cache.classes["name"].tolist(), cache.images["image_id"].to_numpy()
    kinds = {cache.num_classes: "background", -1: "ignored"}
    return [
        Tile(
            image=int(owners[i]),
            proposal=proposals[i],
            box=boxes[i],
            caption=f"image {image_ids[owners[i]]}" if by == "class" else kinds.get(label) or names[label],
            own=f"{shortened(names[own[i]], MAX_NAME - 5)} {scores[i]:.2f}",
            is_right=bool(own[i] == label) if is_object[i] else None,
        )
        for i, label in enumerate(labels.tolist())
    ]


def _own_classes(cache: RoICache, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the foreground class of highest score by the detector's own classifier, and the score: (n,) each."""
    scores = detector_scores(cache.take("logits", rois), cache.take("objectness", rois), cache.detector)
    own = scores[:, :-1].argmax(axis=1)
    return own, scores[np.arange(len(own)), own]


def _cut_all(
    cache: RoICache, annotations: Annotations, folder: Path, tiles: Sequence[Tile], allow_outside: bool
) -> list[PILImage.Image]:
    """Returns what each tile shows, with its boxes; each image is read once."""
    ids = cache.images["image_id"].to_numpy()
    sizes = cache.images[["height", "width"]].to_numpy().tolist()
    places = np.searchsorted(annotations.image_ids, ids)
    known = np.isin(ids, annotations.image_ids)
    paths = {}
    for position in sorted({tile.image for tile in tiles}):  # all are found before the first is read
        if not known[position]:
            raise ValueError(f"{cache.url}: image {ids[position]} is not in {annotations.path}")
        paths[position] = find_image(folder, annotations.file_names[places[position]], allow_outside)
    read = SizedReader()
    cuts: dict[int, PILImage.Image] = {}
    for position, path in progress_bar(paths.items(), desc="browse", unit="image", total=len(paths)):
        height, width = sizes[position]
        image = PILImage.fromarray(np.asarray(read(path, (height, width))))
        for i, tile in enumerate(tiles):
            if tile.image == position:
                cuts[i] = crop_around(image, np.stack([tile.box, tile.proposal]), TILE, (BOX, PROPOSAL))
    return [cuts[i] for i in range(len(tiles))]


def _draw(
    title: str, rows: Sequence[RoIRow], tiles: Sequence[list[Tile]], cuts: Sequence[PILImage.Image]
) -> PILImage.Image:
    """Returns the sheet: a title and a legend, then each row below its own title."""
    row_height = 2 * LINE + TILE + 2 * LINE
    width = max(2 * MARGIN + max(map(len, tiles), default=0) * (TILE + GAP) - GAP, MIN_WIDTH)
    sheet = PILImage.new("RGB", (width, 2 * MARGIN + 4 * LINE + len(rows) * row_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, line in enumerate([*_wrapped(title, font, width), *_wrapped(LEGEND, font, width)][:4]):
        draw.text((MARGIN, MARGIN + i * LINE), line, INK, font)
    remaining = iter(cuts)
    for r, (row, own) in enumerate(zip(rows, tiles, strict=True)):
        y = MARGIN + 4 * LINE + r * row_height
        draw.text((MARGIN, y + LINE // 2), row.title if own else f"{row.title}: none in this cache", INK, font)
        for c, tile in enumerate(own):
            x, below = MARGIN + c * (TILE + GAP), y + 2 * LINE + TILE
            sheet.paste(next(remaining), (x, y + 2 * LINE))
            colour = INK if tile.is_right is None else RIGHT if tile.is_right else WRONG
            draw.text((x, below), shortened(tile.caption, MAX_NAME), INK, font)
            draw.text((x, below + LINE - 2), tile.own, colour, font)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Returns the text in lines that fit into the width of the sheet."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getbbox(longer)[2] > width - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
