"""The two protocols: LVIS's for federated datasets, COCO's for exhaustive ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from extract.utils.prefetch import available_cpus, prefetch
from fuse.defaults import COCO_MAX_DETECTIONS, MAX_DETECTIONS
from fuse.detections import Detections
from fuse.evaluation.coco_engines import COCO_ENGINES, recall_caps
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.engines import AREAS, LVIS_ENGINES, PrecisionRecall

if TYPE_CHECKING:
    from fuse.evaluation.native import Matches

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
IOU_TYPES = ("segm", "bbox")


class Protocol(NamedTuple):
    """How a kind of dataset is evaluated.

    Attributes:
        title: of the protocol.
        max_detections: its cap on detections.
        engines: names of what computes it.
    """

    title: str
    max_detections: int
    engines: tuple[str, ...]


PROTOCOLS = {
    "federated": Protocol("LVIS's protocol", MAX_DETECTIONS, ("native", *LVIS_ENGINES)),
    "exhaustive": Protocol("COCO's protocol", COCO_MAX_DETECTIONS, ("native", *COCO_ENGINES)),
}
"""By the kind of dataset: each class is annotated in some images only, or every class in every image."""
LVIS_FIELDS = "neg_category_ids or not_exhaustive_category_ids"
"""Fields of the images of a federated dataset."""
ENGINE_TOLERANCE = 1e-6
"""Points by which the AP of two engines may differ."""
MEASURES = ("AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR", "ARs", "ARm", "ARl")
"""Columns of `class_measures` besides AP; those of areas and caps are COCO's only."""


def resolve_protocol(dataset: EvaluationDataset, protocol: str | None) -> str:
    """Returns the protocol, by default that of the dataset's kind, and logs it.

    Warns if a dataset without negative categories is evaluated as a federated one, where AP means less than it seems.

    Args:
        dataset: of `load_annotations`.
        protocol: a key of `PROTOCOLS` or None.

    Raises ValueError for another protocol.
    """
    chosen = dataset.protocol if protocol is None else protocol
    if chosen not in PROTOCOLS:
        raise ValueError(f"protocol is {chosen!r}, expected {' or '.join(map(repr, PROTOCOLS))}")
    reason = f"{'some images have' if dataset.federated else 'no image has'} {LVIS_FIELDS}"
    given = f"{reason}, but protocol is {chosen!r}" if chosen != dataset.protocol else reason
    _LOG.info("%s: %s; %s annotations, %s", dataset.source, given, chosen, PROTOCOLS[chosen].title)
    if chosen == "federated" and not any(image["neg_category_ids"] for image in dataset["images"]):
        _LOG.warning(
            "%s: no image has a negative category (neg_category_ids), so the AP of a class counts only the images that "
            "show it, and false positives in all others are free; if every class is annotated in every image, evaluate "
            "with protocol 'exhaustive'",
            dataset.source,
        )
    return chosen


def resolve_iou_types(
    iou_type: str | Iterable[str] | None, dataset: EvaluationDataset, rows: Iterable[Detections]
) -> list[str]:
    """Returns the IoU types to evaluate: by default both if all rows and the annotations have masks, else "bbox"."""
    if iou_type is None:
        masks = dataset.has_masks and all(row.rles is not None for row in rows)
        return list(IOU_TYPES) if masks else ["bbox"]
    return [iou_type] if isinstance(iou_type, str) else list(iou_type)


def resolve_cap(protocol: str, max_detections: int | None) -> int:
    """Returns the cap on detections: that of the protocol by default. Raises ValueError for one below 1."""
    cap = PROTOCOLS[protocol].max_detections if max_detections is None else max_detections
    if cap < 1:
        raise ValueError(f"max_detections is {cap}, expected at least 1")
    return cap


def check_engine(protocol: str, engine: str) -> None:
    """Raises ValueError for an engine that does not compute the protocol."""
    title, _, engines = PROTOCOLS[protocol]
    if engine not in engines:
        raise ValueError(f"engine is {engine!r}, expected {' or '.join(map(repr, engines))} for {title}")


def precision_recall(
    protocol: str,
    engine: str,
    dataset: EvaluationDataset,
    rows: Sequence[Detections],
    iou_type: str,
    max_detections: int | None,
) -> Iterator[PrecisionRecall]:
    """Runs an engine on the detections of each row. `max_detections` None is no cap.

    LVIS's protocol caps the detections of each image; COCO's code caps those of each image and class.
    """
    if engine == "native":
        from fuse.evaluation.accumulate import curves  # imports numba

        return match_rows(protocol, dataset, rows, iou_type, max_detections, curves)
    if protocol == "exhaustive":
        cap = _largest_cap(rows, max_detections)
        return (COCO_ENGINES[engine](dataset, row, iou_type, cap) for row in rows)
    return (LVIS_ENGINES[engine](dataset, row, iou_type) for row in capped(protocol, rows, max_detections))


def measured_precision_recall(
    protocol: str,
    engine: str,
    dataset: EvaluationDataset,
    rows: Sequence[Detections],
    iou_type: str,
    max_detections: int | None,
    measure: Callable[[Matches], T],
    every_class: bool = False,
) -> Iterator[tuple[PrecisionRecall, T]]:
    """Yields what `precision_recall` does, and `measure` of each row's matches, of `every_class` as in `coco_matches`.

    These are always native. Warns if another engine's AP differs from that of these matches.
    """
    from fuse.evaluation.accumulate import curves

    def finish(matches: Matches) -> tuple[PrecisionRecall, T]:
        return curves(matches), measure(matches)

    native = match_rows(protocol, dataset, rows, iou_type, max_detections, finish, every_class)
    if engine == "native":
        yield from native
        return
    others = precision_recall(protocol, engine, dataset, rows, iou_type, max_detections)
    for other, (own, measured) in zip(others, native, strict=True):
        difference = np.nan_to_num(class_measures(other)["AP"] - class_measures(own)["AP"])
        if np.abs(difference).max(initial=0) > ENGINE_TOLERANCE:
            _LOG.warning(
                "intervals are of native matches, whose AP of a class differs by up to %.2g points from that of %s; "
                "errors are as well",
                np.abs(difference).max(),
                engine,
            )
        yield other, measured


def match_rows(
    protocol: str,
    dataset: EvaluationDataset,
    rows: Sequence[Detections],
    iou_type: str,
    max_detections: int | None,
    finish: Callable[[Matches], T],
    every_class: bool = False,
) -> Iterator[T]:
    """Matches each row's detections with the ground truth and yields `finish` of the matches; arguments as above."""
    from fuse.evaluation.native import coco_matches, lvis_matches

    if protocol == "exhaustive":
        caps = recall_caps(_largest_cap(rows, max_detections))
        return coco_matches(dataset, rows, iou_type, caps, finish, every_class)
    return lvis_matches(dataset, capped(protocol, rows, max_detections), iou_type, finish)


def _largest_cap(rows: Sequence[Detections], max_detections: int | None) -> int:
    return max(1, *map(len, rows)) if max_detections is None else max_detections


def capped(protocol: str, rows: Sequence[Detections], max_detections: int | None) -> Sequence[Detections]:
    """Returns the detections of each row that a protocol evaluates, but for COCO's cap per class. None is no cap."""
    if max_detections is None or protocol == "exhaustive":
        return rows
    cap = max_detections
    return list(prefetch(lambda row: row.top_per_image(cap), rows, threads=available_cpus(), depth=len(rows)))


def class_measures(curves: PrecisionRecall) -> dict[str, np.ndarray]:
    """Returns AP and `MEASURES` of each class in points, (K,) float64; NaN where a class has no ground truth."""
    precision, recall = curves.precision, curves.recall[:, None]
    columns = {"AP": precision[..., 0], "AP50": precision[:1, ..., 0], "AP75": precision[5:6, ..., 0]}
    for area, suffix in enumerate(AREAS[: precision.shape[3]]):
        columns[f"AP{suffix}"] = precision[..., area]
        columns[f"AR{suffix}"] = recall[..., area, -1]
    for m, cap in enumerate(curves.caps[:-1]):
        columns[f"AR@{cap}"] = recall[..., 0, m]
    return {name: _mean_points(columns[name]) for name in ("AP", *MEASURES) if name in columns}


def _mean_points(values: np.ndarray) -> np.ndarray:
    """Returns (K,) means of (T, …, K) precision or recall in points, NaN for classes of -1."""
    return np.where((values >= 0).all(axis=(0, 1)), 100 * values.mean(axis=(0, 1)), np.nan)
