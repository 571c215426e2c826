"""The masks of `fuse`, `fuse sweep`, `fuse merge` and `fuse evaluate`: of the cache, or painted beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from extract.cache.mask_store import MaskStore
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.config import Precision
from extract.detectors import load_detector
from extract.detectors.identity import precision_of
from extract.utils.distributed import Coordinator, world_size
from fuse.commands.inputs import open_val_cache
from fuse.commands.mask_config import MaskConfig
from fuse.config import EvaluationConfig
from fuse.detections import Detections
from fuse.painted import describe_missing, distinct_pairs, with_masks
from fuse.painting import MaskPainter, load_painter, paint_pairs

_LOG = logging.getLogger(__name__)


class PaintedMasks:
    """The masks beside a cache, and the detector that paints those that are missing.

    The processes that torchrun starts share the painting: rank 0 calls `attach`, the others call `assist`.
    """

    def __init__(self, config: MaskConfig, cache: RoICache, annotations: Path) -> None:
        """
        Args:
            config: names the detector; without one, only what is painted already can be attached.
            cache: the val cache that the detections come from.
            annotations: file of the cache's images.
        """
        self._config, self._cache, self._annotations = config, cache, annotations
        self._store, self._coordinator = MaskStore(cache), Coordinator()

    @property
    def available(self) -> bool:
        """Whether there are masks, or a detector that paints them."""
        return bool(self._config.detector is not None or self._store)

    def prepare(self) -> None:
        """Loads and checks the detector before the work begins, unless masks of it are there: all may be painted.

        Raises what `load_detector` and `MaskPainter.check` raise, or ValueError for another detector than the cache's.
        """
        if self._config.detector is not None and not self._store:
            self._checked_painter  # noqa: B018

    def attach(self, detections: Mapping[str, Detections]) -> dict[str, Detections]:
        """Returns rows of detections with masks; paints those that are missing. Rows that have masks keep them.

        Called once. Raises ValueError if masks are missing and no detector is named, and what `prepare` raises.
        """
        without = {name: one for name, one in detections.items() if one.rles is None}
        pairs = distinct_pairs(without.values())
        missing = self._store.missing(pairs)
        count, total = len(missing.image_ids), len(pairs.image_ids)
        if count and self._config.detector is None:
            raise ValueError(
                f"{self._store.url}: {describe_missing(missing, pairs)}: add {detector_options(self._cache)}, "
                "or evaluate boxes with --masks none"
            )
        if count:
            _LOG.info("painting %s masks; %s are in %s already", f"{count:,}", f"{total - count:,}", self._store.url)
            self._checked_painter  # noqa: B018
        request = self._store.write_request(missing) if count and world_size() > 1 else None
        self._coordinator.broadcast(request)
        try:
            if count:
                paint_pairs(self._store, missing, self._checked_painter, self._coordinator)
        finally:
            if request:
                self._store.remove_request(request)
        return {**detections, **with_masks(self._store, without, pairs)}

    def if_wanted(self, iou_types: tuple[str, ...]) -> PaintedMasks | None:
        """Returns itself; None if masks are not evaluated after all, and then lets the other processes go."""
        if "segm" in iou_types:
            return self
        self._coordinator.broadcast(None)
        return None

    def if_usable(self, results: Mapping[str, Detections], iou_types: tuple[str, ...]) -> PaintedMasks | None:
        """Returns itself; None, which is logged, if masks of results are not painted, cannot be and are not asked for.

        Args:
            results: of any detector, by name.
            iou_types: that the user asks for; () where the masks decide.
        """
        pairs = distinct_pairs(one for one in results.values() if one.rles is None)
        if self._config.detector is not None or iou_types or not len(pairs.image_ids):
            return self
        if np.isin(pairs.image_ids, self._cache.images["image_id"]).all():
            missing = self._store.missing(pairs)
            if not len(missing.image_ids):
                return self
            text = describe_missing(missing, pairs)
        else:
            text = "has masks of other images"
        _LOG.info(
            "%s: %s; boxes are evaluated; to paint masks, add %s", self._store.url, text, detector_options(self._cache)
        )
        return None

    def assist(self) -> None:
        """Paints what rank 0 asks for, in the other processes of torchrun."""
        request = self._coordinator.broadcast(None) if self._config.detector is not None else None
        if request is not None:
            paint_pairs(self._store, self._store.read_request(request), self._painter, self._coordinator)

    @cached_property
    def _painter(self) -> MaskPainter:
        assert self._config.images is not None, "resolve_annotations sets it"
        precision = cast(Precision, precision_of(self._cache.detector))
        detector = load_detector(replace(self._config, precision=precision))
        return load_painter(detector, self._cache, self._annotations, self._config.images, self._config.allow_outside)

    @cached_property
    def _checked_painter(self) -> MaskPainter:
        self._painter.check()
        return self._painter


def painted_masks(
    config: MaskConfig, iou_types: tuple[str, ...], cache: RoICache, annotations: Path
) -> PaintedMasks | None:
    """Returns the masks beside a cache, or None where masks are not wanted, are in the cache, or cannot be had.

    Says what to add where there are none. Raises ValueError if mask AP is asked for then.

    Args:
        config: of the command.
        iou_types: that the user asks for; () where the masks decide.
        cache: a val cache.
        annotations: file of the cache's images.
    """
    if config.masks == "none":
        _LOG.info("masks none: boxes are evaluated")
        return None
    if "masks" in cache.fields:
        return None
    if iou_types and "segm" not in iou_types:
        return None
    painted = PaintedMasks(config, cache, annotations)
    if painted.available:
        return painted
    text = (
        f"no masks: {cache.url} has none; if its detector predicts masks, add {detector_options(cache)} to paint them"
    )
    if iou_types:
        raise ValueError(text)
    _LOG.info("%s; boxes are evaluated", text)
    return None


def masks_of_results(config: MaskConfig, options: EvaluationConfig, cache_url: str | None) -> PaintedMasks | None:
    """Returns what gives masks to result files that have none; None if masks are not wanted or cannot be had.

    Args:
        config: where masks come from.
        options: how the results are evaluated.
        cache_url: of the cache whose detector made the results.
    """
    wanted = config.masks == "auto" and (not options.iou_types or "segm" in options.iou_types)
    if cache_url is None or not wanted:
        return None
    cache = open_cache(cache_url) if config.detector is None else open_val_cache(cache_url)
    painted = PaintedMasks(config, cache, options.annotations)
    return painted if painted.available else None


def detector_options(cache: RoICache) -> str:
    """Returns the options that name the detector of a cache, as far as the cache records them."""
    made_with, framework = cache.provenance.get("config", {}), cache.detector.get("framework")
    options = [f"--detector {made_with.get('detector', '…')}"]
    options += ["--config-file …"] * (framework in ("detectron2", "mmdet"))
    options += ["--weights …", "--images …", *made_with.get("detector_options", ())]
    return " ".join(options)
