"""Segmentations of annotations: polygons or run-length encodings (RLE), compressed or not."""

from __future__ import annotations

import math

from extract.data.normalize import normalize_rle
from extract.data.records import ImageRecord, ShapeRecord
from extract.data.repairs import AnnotationError, Repairs
from extract.utils.errors import shown

NOT_POLYGONS = "is not a list of polygons of three or more points"


def usable_segmentation(annotation: ShapeRecord, image: ImageRecord, repairs: Repairs) -> list | dict:
    """Returns the segmentation as the evaluation engines read it: polygons, RLE, or [] if there is none.

    Args:
        annotation: its polygons of fewer than three points are left out.
        image: that the annotation is of.
        repairs: is told of what is left out, and of masks without pixels.

    Raises AnnotationError for what is neither, or for RLE of another size than the image.
    """
    value = annotation.segmentation
    if isinstance(value, dict):
        value, fault = _rle(annotation, value, image, repairs)
    else:
        value, fault = _polygons(annotation, value, repairs)
    if fault:
        raise AnnotationError(
            f"{repairs.source}: annotation {annotation.id}: segmentation {shown(annotation.segmentation)} {fault}"
        )
    return value


def mask_area(segmentation: list | dict, height: int, width: int) -> float:
    """Returns the number of pixels of a segmentation, as pycocotools counts them."""
    from hotcoco import mask

    if isinstance(segmentation, dict):
        return float(mask.area(segmentation))
    return float(mask.area(mask.merge(mask.fr_py_objects(segmentation, height, width))))


def _polygons(annotation: ShapeRecord, polygons: list, repairs: Repairs) -> tuple[list, str | None]:
    """Returns the polygons of three or more points, and what is wrong with them, if anything is."""
    try:  # a sum is finite only if all its terms are
        faulty = [len(p) >= 6 and not (len(p) % 2 == 0 and math.isfinite(sum(p))) for p in polygons]
    except (TypeError, OverflowError):
        return polygons, NOT_POLYGONS
    if any(faulty):
        return polygons, NOT_POLYGONS
    kept = [p for p in polygons if len(p) >= 6]
    if len(kept) < len(polygons):
        change = "have polygons of fewer than three points, which are left out"
        repairs.add("annotations", change, f"annotation {annotation.id}")
    return kept, None


def _rle(annotation: ShapeRecord, rle: dict, image: ImageRecord, repairs: Repairs) -> tuple[dict, str | None]:
    """Returns the RLE as engines read it, and what is wrong with it, if anything is."""
    from hotcoco import mask

    if not isinstance(rle.get("counts"), str):
        rle = normalize_rle(rle)
    size, found = [image.height, image.width], rle.get("size")
    if not isinstance(found, list | tuple):
        return rle, f"is not a run-length encoding: size is {shown(found)}, expected height and width"
    if image.height and list(found) != size:
        return rle, f"has another size than image {image.shown_id}, which is {image.height} high and {image.width} wide"
    try:
        empty = mask.area(rle) == 0
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return rle, f"is not a run-length encoding: {error}"
    repairs.add("annotations", "have masks without pixels", f"annotation {annotation.id}", int(empty))
    return rle, None
