"""LVIS and COCO annotation files as flat arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.data.boxes import clip_boxes
from extract.data.classes import check_classes
from extract.data.image_files import file_candidates, read_sizes
from extract.data.records import (
    AnnotationFile,
    BoxRecord,
    CategoryRecord,
    ImageRecord,
    decode_records,
    frequencies,
    image_counts,
    positions_of,
    read_bytes,
    text_ids_of,
    unique_ids,
    without_repeats,
)
from extract.data.repairs import AnnotationError, Repairs, totals_of
from extract.utils.errors import shortened, shown
from extract.utils.memory import garbage_collection_paused

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Annotations:
    """One annotation file. `N` images, `A` annotations, `K` classes.

    Attributes:
        path: the file.
        sha256: of its bytes.
        image_ids: (N,) int64, ascending.
        heights, widths: (N,) int32 pixels; 0 where they are unknown.
        file_names: for each image the candidates for its path in the image folder, the likeliest first.
        classes: class table with the counts of this file.
        ids: (A,) int64 annotation ids, grouped by image.
        labels: (A,) int32 contiguous classes.
        boxes: (A, 4) float32 xyxy pixels, inside the image, with an area.
        crowd: (A,) bool, regions of many objects, which no proposal matches.
        exhaustive: (N,) bool, whether the image has no class that is annotated only in part.
        offsets: (N+1,) int64; image i owns annotations `offsets[i]:offsets[i+1]`.
        listed: (K,) int64, the classes in the order in which the file lists them.
        federated: whether classes are annotated in some images only, as in LVIS: any image of the file has
            `neg_category_ids` or `not_exhaustive_category_ids`.
        text_ids: ids in the file of the images whose ids are text there, by image id, for results.
    """

    path: Path
    sha256: str
    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    file_names: list[tuple[str, ...]]
    classes: pd.DataFrame
    ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    exhaustive: np.ndarray
    offsets: np.ndarray
    listed: np.ndarray
    federated: bool
    text_ids: Mapping[int, str] = field(default_factory=dict)

    def image_slice(self, position: int) -> slice:
        """Returns the positions of an image's annotations."""
        return slice(int(self.offsets[position]), int(self.offsets[position + 1]))


@garbage_collection_paused()
def read_annotations(
    path: str | Path, *, images: Path | None = None, strict: bool = False, allow_outside: bool = False
) -> Annotations:
    """Reads an LVIS (v0.5, v1) or COCO file, with or without annotations, as any tool may have written it.

    Classes are numbered by ascending category id. If the file has no frequency (r, c or f) of a category, it follows
    from the image count as LVIS defines it (1–10, 11–100, more). Boxes are clipped to their images, and left out if
    they have no area. What is left out or changed is logged as one warning per kind.

    Args:
        path: the file.
        images: folder of the images; the sizes that the file lacks are read there.
        strict: raises in place of a warning.
        allow_outside: whether these images may be outside of the folder.

    Raises FileNotFoundError, or AnnotationError naming the file, the entry, the field and the value.
    """
    path, repairs = Path(path), Repairs(str(path))
    raw = read_bytes(path)
    content = decode_records(raw, AnnotationFile[BoxRecord], repairs)
    records, categories = sorted(content.images, key=_id_of), sorted(content.categories, key=_id_of)
    image_ids = unique_ids(repairs, "images", [image.id for image in records])
    names = file_candidates(records)
    sizes = _sizes(records, names, images, allow_outside, repairs)
    _report_repeated_names(records, categories, names, repairs)
    annotations = without_repeats(content.annotations or [], repairs)
    arrays = _annotation_arrays(annotations, image_ids, categories, sizes, repairs)
    repairs.report(totals_of(len(records), len(categories), len(content.annotations or ())), strict)
    order = np.argsort(arrays["owner"], kind="stable")
    owner, labels = arrays["owner"][order], arrays["labels"][order]
    return Annotations(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        image_ids=image_ids,
        heights=sizes[:, 0],
        widths=sizes[:, 1],
        file_names=names,
        classes=_class_table(path, categories, owner, labels),
        ids=arrays["ids"][order],
        labels=labels,
        boxes=arrays["boxes"][order],
        crowd=arrays["crowd"][order],
        exhaustive=np.array([not image.not_exhaustive_category_ids for image in records], bool),
        offsets=np.searchsorted(owner, np.arange(len(records) + 1)),
        listed=np.searchsorted([c.id for c in categories], [c.id for c in content.categories]),
        federated=any(image.is_federated for image in records),
        text_ids=text_ids_of(records),
    )


def _annotation_arrays(
    annotations: Sequence[BoxRecord],
    image_ids: np.ndarray,
    categories: Sequence[CategoryRecord],
    sizes: np.ndarray,
    repairs: Repairs,
) -> dict[str, np.ndarray]:
    """Returns owner (position of the image), labels, ids, boxes and crowd of the annotations that have an area."""
    category_ids = unique_ids(repairs, "categories", [category.id for category in categories])
    ids = np.array([a.id for a in annotations], np.int64)
    unique_ids(repairs, "annotations", sorted(ids.tolist()))
    owner = positions_of(repairs, annotations, "image_id", image_ids)
    labels = positions_of(repairs, annotations, "category_id", category_ids)
    boxes, has_area = clip_boxes(annotations, sizes[owner][:, ::-1], repairs)
    columns = {
        "owner": owner,
        "labels": labels.astype(np.int32),
        "ids": ids,
        "boxes": boxes,
        "crowd": np.array([a.iscrowd for a in annotations], bool),
    }
    return columns if has_area.all() else {name: column[has_area] for name, column in columns.items()}


def _sizes(
    images: Sequence[ImageRecord],
    names: Sequence[tuple[str, ...]],
    folder: Path | None,
    allow_outside: bool,
    repairs: Repairs,
) -> np.ndarray:
    """Returns (N, 2) int32 heights and widths, those that the file lacks from the images in the folder, if given."""
    sizes = np.array([(image.height, image.width) for image in images], np.int32)
    unknown = np.flatnonzero((sizes == 0).any(1)).tolist()
    if unknown:
        remedy = "their boxes are not clipped" if folder is None else "it is read from their files"
        repairs.add("images", f"have no size: {remedy}", f"image {images[unknown[0]].shown_id}", len(unknown))
        of_unknown = [names[i] for i in unknown]
        sizes[unknown] = 0 if folder is None else read_sizes(folder, of_unknown, allow_outside)
    return sizes


def _report_repeated_names(
    images: Sequence[ImageRecord],
    categories: Sequence[CategoryRecord],
    names: Sequence[tuple[str, ...]],
    repairs: Repairs,
) -> None:
    """Tells `repairs` of files under several image ids and of names of several categories.

    Raises AnnotationError for a category without a name.
    """
    nameless = next((category.id for category in categories if not category.name), None)
    if nameless is not None:
        raise AnnotationError(f"{repairs.source}: category {nameless}: missing required field `name`")
    paths = [own[0] if own else "" for own in names]
    if pair := _first_repeat(paths):
        example = f"images {images[pair[0]].shown_id} and {images[pair[1]].shown_id} ({shortened(paths[pair[0]])})"
        repairs.add("images", "have the file of another image", example, _repeats(paths))
    labels = [category.name for category in categories]
    if pair := _first_repeat(labels):
        example = f"categories {categories[pair[0]].id} and {categories[pair[1]].id} ({shown(labels[pair[0]])})"
        change = "have the name of another one, so that names do not tell them apart"
        repairs.add("categories", change, example, _repeats(labels))


def _first_repeat(values: Sequence[str]) -> tuple[int, int] | None:
    """Returns the positions of the first value, not empty, that occurs again, and of its repeat."""
    seen: dict[str, int] = {}
    for i, value in enumerate(values):
        if value and seen.setdefault(value, i) != i:
            return seen[value], i
    return None


def _repeats(values: Sequence[str]) -> int:
    given = [value for value in values if value]
    return len(given) - len(set(given))


def _class_table(
    path: Path, categories: Sequence[CategoryRecord], owner: np.ndarray, label: np.ndarray
) -> pd.DataFrame:
    import pandas as pd

    image_count = image_counts(label, owner, len(categories))
    table = pd.DataFrame(
        {
            "category_id": [c.id for c in categories],
            "name": [c.name for c in categories],
            "frequency": [c.frequency or f for c, f in zip(categories, frequencies(image_count), strict=True)],
            "image_count": image_count,
            "instance_count": np.bincount(label, minlength=len(categories)),
        }
    )
    return check_classes(table, str(path))


def _id_of(record: Any) -> int:
    return record.id
