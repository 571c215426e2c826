"""Loads annotations for the evaluation engines: checked, complete, with annotation ids from 1."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from extract.data.boxes import finite_boxes, report_boxes
from extract.data.image_files import file_candidates
from extract.data.records import (
    AnnotationFile,
    CategoryRecord,
    ImageRecord,
    ShapeRecord,
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
from extract.utils.errors import shortened
from extract.utils.memory import garbage_collection_paused
from fuse.evaluation.segmentations import mask_area, usable_segmentation

Sizes = Mapping[int, tuple[int, int]]
"""(height, width) of images by id."""


class EvaluationDataset(dict[str, list[dict]]):
    """Checked content of an annotation file, as `load_annotations` returns it: images, categories, annotations.

    Images have `neg_category_ids` and `not_exhaustive_category_ids`, empty where the file has none, and height and
    width 0 where it has none. Annotations have `iscrowd`, 0 or 1, and an empty `segmentation` where the file has none.

    Attributes:
        federated: whether classes are annotated in some images only, as in LVIS: any image of the file has
            `neg_category_ids` or `not_exhaustive_category_ids`.
        source: the file, or a name for content without a file.
        text_ids: ids in the file of the images whose ids are text there, by image id, for results.
        records: all images of the file, also those that are not kept.
    """

    def __init__(
        self,
        *,
        federated: bool,
        source: str = "annotations",
        text_ids: Mapping[int, str] | None = None,
        records: Sequence[ImageRecord] = (),
        **sections: list[dict],
    ) -> None:
        super().__init__(sections)
        self.federated, self.source, self.text_ids = federated, source, dict(text_ids or {})
        self.records = records

    @property
    def protocol(self) -> str:
        """Name of the protocol of a dataset annotated like this: "federated" or "exhaustive"."""
        return "federated" if self.federated else "exhaustive"

    def with_sections(self, **sections: list[dict]) -> EvaluationDataset:
        """Returns a dataset with other images, categories or annotations."""
        return EvaluationDataset(
            federated=self.federated,
            source=self.source,
            text_ids=self.text_ids,
            records=self.records,
            **{**self, **sections},
        )

    def file_names(self) -> dict[int, tuple[str, ...]]:
        """Returns the possible paths of each image of the file in the image folder, by id, the likeliest first."""
        return dict(zip((image.id for image in self.records), file_candidates(self.records), strict=True))

    def shown_id(self, image_id: int) -> int | str:
        """Returns an image's id as it is in the file, long text shortened, for messages."""
        return shortened(self.text_ids[int(image_id)]) if int(image_id) in self.text_ids else image_id

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a segmentation."""
        return any(annotation["segmentation"] for annotation in self["annotations"])


@garbage_collection_paused()
def load_annotations(
    source: str | os.PathLike | dict,
    image_ids: Iterable[int] | None = None,
    *,
    sizes: Sizes | None = None,
    strict: bool = False,
) -> EvaluationDataset:
    """Loads an LVIS or COCO annotation file, with or without annotations, as any tool may have written it.

    Numbers the annotations from 1, because the official evaluations count a match with annotation 0 as no match.
    Boxes are those of the file, as in the official evaluations. An area that the file lacks is that of the
    segmentation, or else of the box. If the dataset is federated, annotations of area 0 are left out, as in the
    official evaluation of LVIS. What is left out or changed is logged as one warning per kind.

    Args:
        source: the file or its content, which is not changed. All of it is checked unless it is an `EvaluationDataset`.
        image_ids: images to keep; None keeps all.
        sizes: for images whose size the file lacks.
        strict: raises in place of a warning.

    Raises:
        FileNotFoundError, ValueError: naming the file, the annotation, the field and its value.
    """
    if isinstance(source, EvaluationDataset) and image_ids is None:
        return source
    dataset = source if isinstance(source, EvaluationDataset) else _load(source, sizes or {}, strict)
    kept = {image["id"] for image in dataset["images"]}
    if image_ids is not None:
        chosen = set(map(int, image_ids))
        if not chosen <= kept:
            raise ValueError(f"{dataset.source}: has no image {min(chosen - kept)}")
        kept = chosen
    annotations = [a for a in dataset["annotations"] if a["image_id"] in kept]
    return dataset.with_sections(
        images=[image for image in dataset["images"] if image["id"] in kept],
        annotations=[{**a, "id": i} for i, a in enumerate(annotations, start=1)],
    )


def _load(source: str | os.PathLike | dict, sizes: Sizes, strict: bool) -> EvaluationDataset:
    """Returns the checked content; annotations have the ids of the file."""
    name = "annotations" if isinstance(source, dict) else str(source)
    repairs = Repairs(name)
    content = decode_records(
        source if isinstance(source, dict) else read_bytes(os.fspath(source)), AnnotationFile[ShapeRecord], repairs
    )
    annotations = without_repeats(content.annotations or [], repairs)
    image_ids = unique_ids(repairs, "images", sorted(image.id for image in content.images))
    category_ids = unique_ids(repairs, "categories", sorted(category.id for category in content.categories))
    unique_ids(repairs, "annotations", sorted(annotation.id for annotation in annotations))
    owners = positions_of(repairs, annotations, "image_id", image_ids)
    labels = positions_of(repairs, annotations, "category_id", category_ids)
    federated = any(image.is_federated for image in content.images)
    images = _with_sizes(content.images, sizes, repairs)
    _remove_unknown_categories(images, set(category_ids.tolist()), repairs)
    annotations = _with_shapes(annotations, {image.id: image for image in images}, federated, repairs)
    repairs.report(totals_of(len(images), len(category_ids), len(content.annotations or ())), strict)
    return EvaluationDataset(
        federated=federated,
        source=name,
        text_ids=text_ids_of(images),
        records=images,
        images=[_image_dict(image) for image in images],
        categories=_category_dicts(content.categories, category_ids, owners, labels),
        annotations=[_annotation_dict(annotation) for annotation in annotations],
    )


def _with_sizes(images: Sequence[ImageRecord], sizes: Sizes, repairs: Repairs) -> list[ImageRecord]:
    """Returns the images with sizes of `sizes` where the file has none."""
    for image in images:
        if not (image.height and image.width):
            image.height, image.width = sizes.get(image.id, (0, 0))
            remedy = "it is that of the cache" if image.height else "there is no mask AP of them"
            repairs.add("images", f"have no size: {remedy}", f"image {image.shown_id}")
    return list(images)


def _remove_unknown_categories(images: Sequence[ImageRecord], known: set[int], repairs: Repairs) -> None:
    """Removes ids that are no category of the file from the images' lists of categories."""
    for image in images:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = getattr(image, field) or []
            unknown = [i for i in ids if i not in known]
            if unknown:
                setattr(image, field, [i for i in ids if i in known])
                change = f"have {field} that are no categories of the file and are left out"
                repairs.add("images", change, f"{unknown[0]} of image {image.shown_id}")


def _with_shapes(
    annotations: Sequence[ShapeRecord], images: Mapping[int, ImageRecord], federated: bool, repairs: Repairs
) -> list[ShapeRecord]:
    """Returns the annotations to evaluate, with areas and usable segmentations.

    Raises AnnotationError for an area that is negative or infinite, and an invalid box or segmentation.
    """
    kept = []
    for annotation in annotations:
        area, image = annotation.area, images[annotation.image_id]
        if not (math.isnan(area) or 0 <= area < math.inf):
            where = f"{repairs.source}: annotation {annotation.id}"
            raise AnnotationError(f"{where}: area is {area}, expected at least 0")
        if federated and area == 0:
            change = "have area 0 and are left out, as in the evaluation of LVIS"
            repairs.add("annotations", change, f"annotation {annotation.id}")
            continue
        annotation.segmentation = usable_segmentation(annotation, image, repairs)
        if math.isnan(area):
            annotation.area = _area(annotation, image)
            change = "have no field area, which is computed from the segmentation or the box"
            repairs.add("annotations", change, f"annotation {annotation.id}")
        kept.append(annotation)
    xywh = finite_boxes(kept, repairs.source)
    report_boxes(kept, np.any(xywh[:, 2:] <= 0, axis=1), "have no area: no detection can match them", repairs)
    return kept


def _area(annotation: ShapeRecord, image: ImageRecord) -> float:
    """Returns the area of the segmentation, or of the box if there is none."""
    shape = annotation.segmentation
    if shape and (isinstance(shape, dict) or image.height):
        return mask_area(shape, image.height, image.width)
    return max(annotation.bbox[2] * annotation.bbox[3], 0.0)


def _image_dict(image: ImageRecord) -> dict[str, Any]:
    return {
        "id": image.id,
        "height": image.height,
        "width": image.width,
        "file_name": image.file_name,
        "neg_category_ids": image.neg_category_ids or [],
        "not_exhaustive_category_ids": image.not_exhaustive_category_ids or [],
    }


def _category_dicts(
    categories: Sequence[CategoryRecord], category_ids: np.ndarray, owners: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the categories; the lvis package needs their frequency."""
    counts = image_counts(labels, owners, len(category_ids))
    derived = dict(zip(category_ids.tolist(), frequencies(counts).tolist(), strict=True))
    return [{"id": c.id, "name": c.name, "frequency": c.frequency or derived[c.id]} for c in categories]


def _annotation_dict(annotation: ShapeRecord) -> dict[str, Any]:
    return {
        "id": annotation.id,
        "image_id": annotation.image_id,
        "category_id": annotation.category_id,
        "bbox": list(annotation.bbox),
        "area": annotation.area,
        "segmentation": annotation.segmentation,
        "iscrowd": annotation.iscrowd,
    }
