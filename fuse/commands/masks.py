"""The masks of `fuse`, `fuse sweep` and `fuse merge`: of the cache, or painted beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from extract.cache.mask_store import MaskStore
from extract.cache.reader import RoICache
from extract.data.annotations import read_annotations
from extract.data.class_map import ClassMap
from extract.detectors import load_detector
from extract.detectors.class_map import map_detector
from extract.detectors.identity import check_same_detector
from extract.utils.distributed import Coordinator, world_size
from fuse.commands.mask_config import MaskConfig
from fuse.detections import Detections
from fuse.painting import MaskPainter, distinct_pairs, paint_pairs, with_masks

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
                f"{self._store.url}: {count:,} of {total:,} masks are not painted yet: add "
                f"{detector_options(self._cache)}, or evaluate boxes with --masks none"
            )
        if count:
            _LOG.info("painting %s masks; %s are in %s already", f"{count:,}", f"{total - count:,}", self._store.url)
            self._checked_painter  # noqa: B018
        request = self._store.write_request(missing) if count and world_size() > 1 else None
        self._coordinator.broadcast(request)
        if count:
            paint_pairs(self._store, missing, self._checked_painter, self._coordinator)
        if request:
            self._store.remove_request(request)
        return {**detections, **with_masks(self._store, without, pairs)}

    def if_wanted(self, iou_types: tuple[str, ...]) -> PaintedMasks | None:
        """Returns itself; None if masks are not evaluated after all, and then lets the other processes go."""
        if "segm" in iou_types:
            return self
        self._coordinator.broadcast(None)
        return None

    def assist(self) -> None:
        """Paints what rank 0 asks for, in the other processes of torchrun."""
        request = self._coordinator.broadcast(None) if self._config.detector is not None else None
        if request is not None:
            paint_pairs(self._store, self._store.read_request(request), self._painter, self._coordinator)

    @cached_property
    def _painter(self) -> MaskPainter:
        config, cache = self._config, self._cache
        assert config.images is not None, "MaskConfig demands it"
        detector = map_detector(load_detector(config), ClassMap.from_description(cache.detector))
        check_same_detector(cache.url, cache.detector, f"in detector {config.detector}", detector.description)
        return MaskPainter(detector, cache, read_annotations(self._annotations), config.images)

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


def detector_options(cache: RoICache) -> str:
    """Returns the options that name the detector of a cache, as far as the cache records them."""
    made_with, framework = cache.provenance.get("config", {}), cache.detector.get("framework")
    options = [f"--detector {made_with.get('detector', '…')}"]
    options += ["--config-file …"] * (framework in ("detectron2", "mmdet"))
    options += ["--weights …", "--images …", *made_with.get("detector_options", ())]
    return " ".join(options)
