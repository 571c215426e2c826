"""Creating RoI caches: empty ones for an extraction, and whole ones from RoIs of any source."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import zarr

from extract.cache.columns import create_columns
from extract.cache.derived import why_stored
from extract.cache.format import (
    FORMAT,
    IMAGES_PER_BLOCK,
    VERSION,
    CacheError,
    Header,
    Layers,
    Projection,
    block_slice,
    num_blocks,
    row_shapes,
)
from extract.cache.location import clear_place, may_be_replaced, move_to_place, remove_cache, settle_cache
from extract.cache.projections import check_hidden, write_projections
from extract.cache.reader import RoICache
from extract.cache.sealing import check_template
from extract.cache.tables import image_table, write_classes, write_fc_layers, write_images
from extract.cache.writer import CacheWriter, resume_cache
from extract.data.classes import check_classes
from extract.rois import RoIs
from extract.utils.locks import one_writer
from extract.utils.progress import FIRST_LINE, progress_bar

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def write_cache(
    url: str,
    rois: Sequence[RoIs],
    classes: pd.DataFrame,
    *,
    split: str,
    level: str,
    stages: Sequence[float] = (0.5,),
    fc_layers: Sequence[Layers] = (),
    projections: Sequence[Projection] = (),
    detector: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> RoICache:
    """Writes a cache of RoIs from any source.

    Args:
        url: path or fsspec URL of the cache.
        rois: one `RoIs` per image; iterated twice, so the sequence may load images on access.
        classes: DataFrame with category_id, name, frequency, image_count, instance_count, ascending by id.
        split: "train" (for training heads) or "val" (for detection and evaluation, without ground-truth boxes).
        level: feature level, "pooled" (R, S, C, P, P), "hidden" (R, S, H + Q), "embedding" (R, S, C) or "logits"
            (None). Level "hidden" needs `fc_layers`, and its features are those of `extract.hidden.hidden_features`;
            logits that follow from both are not stored.
        stages: matching IoU per stage.
        fc_layers: per stage the detector's fully connected layers, (weight (out, in), bias (out,)), background last.
        projections: per stage the projection that gave the last Q features of level "hidden"; () if Q is 0.
        detector: the detector's description; `stage_average` is "scores" (default) or "logits".
        provenance: what else the content depends on.
        overwrite: replace an existing cache.

    Raises CacheError naming the image and the field for other shapes and values that are not finite, or the field of
    `detector` or `provenance` whose value JSON does not have.
    """
    url, images = str(url), image_table(rois)
    if not len(images):
        raise CacheError(f"{url}: no images to write")
    header = Header(split, level, tuple(stages), dict(detector or {}), dict(provenance or {}))
    capacity = max(int(images["roi_count"].max()), 1)
    with one_writer(url):
        settle_cache(url)
        may_be_replaced(url, overwrite)
        # Beside `url` in any case: this cannot be resumed, and nobody shall find half of it there.
        writer = create_cache(url, rois[0], header, classes, images, capacity, fc_layers, True, projections)
        try:
            for block in progress_bar(writer.pending(), desc="write", unit="block", delay=FIRST_LINE):
                writer.write_block(block, [rois[i] for i in range(len(rois))[block_slice(block)]])
            return writer.finish()
        except BaseException:
            remove_cache(writer.url)
            raise


def create_cache(
    url: str,
    template: RoIs,
    header: Header,
    classes: pd.DataFrame,
    images: pd.DataFrame,
    capacity: int,
    fc_layers: Sequence[Layers] = (),
    overwrite: bool = False,
    projections: Sequence[Projection] = (),
) -> CacheWriter:
    """Creates an empty cache and returns its writer.

    Args:
        url: a path or an fsspec URL where nothing is, or a cache if `overwrite`.
        template: RoIs of any image. Their shapes after R matter, and at level "hidden" whether logits follow from
            features.
        header: split, feature level, stages and origin.
        classes: the class table, see `extract.data.classes`.
        images: image_id, height, width, flipped, in the order in which they will be stored.
        capacity: upper bound of the RoIs of one image.
        fc_layers: the detector's fully connected layers, per stage.
        overwrite: replace an existing cache when the new one is finished; until then it is written beside it.
        projections: see `write_cache`.

    Raises CacheError if something is at `url`, if class table, stages or feature level do not fit the RoIs, or if the
    header has values that JSON does not, such as NaN.
    """
    header.check_json(url)
    classes = check_classes(classes, url)
    check_template(url, template, header, classes, images)
    width = 0 if template.features is None else template.features.shape[-1]
    check_hidden(url, header.level, width, fc_layers, projections, len(header.stages))
    shapes = row_shapes(template, logits=_stores_logits(url, template, header, fc_layers))
    place, replace = clear_place(url, overwrite)
    # The mark distinguishes an interrupted creation from somebody's folder.
    group = zarr.create_group(place, overwrite=replace, attributes={"creating": True})
    block_capacity = capacity * min(IMAGES_PER_BLOCK, max(len(images), 1))
    rows_per_block = create_columns(group, header.split, shapes, num_blocks(len(images)), block_capacity)
    write_classes(group, classes)
    write_images(group, images)
    write_fc_layers(group, fc_layers)
    write_projections(group, projections)
    sizes = {"rows_per_block": rows_per_block, "images_per_block": IMAGES_PER_BLOCK}
    group.attrs.put({"format": FORMAT, "version": VERSION, "complete": False, **sizes, **asdict(header)})
    if overwrite:
        return CacheWriter(group, place, url)
    move_to_place(place, url)
    return resume_cache(url)


def _stores_logits(url: str, template: RoIs, header: Header, fc_layers: Sequence[Layers]) -> bool:
    """Returns whether a cache stores logits, and says why one of level "hidden" does."""
    reason = why_stored(template, header, fc_layers)
    if reason and header.level == "hidden":
        log.info("%s: logits are stored: %s", url, reason)
    return reason is not None
