"""Writing RoI caches.

A cache is written in blocks of consecutive images. A block owns a fixed range of rows in every array. Therefore
processes need no coordination: blocks may be written in any order, and again after an interruption, with the same
bytes. An entry in `progress` marks a block as written; the manifest, which marks the cache as complete, comes last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from extract.cache.checksums import BlockChecksums
from extract.cache.columns import columns_of, create_columns, open_arrays
from extract.cache.derived import UpperLayers, check_derived, why_stored
from extract.cache.format import (
    COLUMNS,
    FORMAT,
    IMAGE_COLUMNS,
    IMAGES_PER_BLOCK,
    OWNER_COLUMN,
    VERSION,
    CacheError,
    Header,
    Layers,
    Projection,
    block_slice,
    num_blocks,
    open_group,
    row_shapes,
)
from extract.cache.location import clear_place, move_to_place, remove_cache, settle_cache
from extract.cache.projections import check_hidden, read_projections, write_projections
from extract.cache.reader import RoICache, open_cache
from extract.cache.sealing import check_template, seal
from extract.cache.tables import write_array, write_classes, write_fc_layers, write_images
from extract.cache.values import check_values, image_digest, to_stored
from extract.data.classes import check_classes
from extract.rois import RoIs
from extract.utils.files import PARTIAL
from extract.utils.locks import one_writer

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

    Raises CacheError naming the image and the field for shapes that differ and values that are not finite, and naming
    the field of `detector` or `provenance` whose value JSON does not have.
    """
    import pandas as pd

    url = str(url)
    if len(rois) == 0:
        raise CacheError(f"{url}: no images to write")
    rows = [(r.image_id, r.height, r.width, r.flipped, len(r)) for r in rois]
    images = pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))
    header = Header(split, level, tuple(stages), dict(detector or {}), dict(provenance or {}))
    capacity = max(int(images["roi_count"].max()), 1)
    with one_writer(url):
        settle_cache(url)
        writer = create_cache(url, rois[0], header, classes, images, capacity, fc_layers, overwrite, projections)
        try:
            for block in writer.pending():
                writer.write_block(block, [rois[i] for i in range(len(rois))[block_slice(block)]])
            return writer.finish()
        except BaseException:
            # Unlike an extraction this cannot be resumed, so nothing half-written stays.
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
    reason = why_stored(template, header, fc_layers)
    if reason and header.level == "hidden":
        log.info("%s: logits are stored: %s", url, reason)
    shapes = row_shapes(template, logits=reason is not None)
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


def resume_cache(url: str) -> CacheWriter:
    """Returns the writer of an unfinished cache. Raises FileNotFoundError or CacheError if there is none."""
    group = open_group(url, "r+")
    if group.attrs["complete"]:
        raise CacheError(f"{url}: is finished already")
    return CacheWriter(group, url)


class CacheWriter:
    """The writer of an unfinished cache, block by block; returned by `create_cache` and `resume_cache`."""

    def __init__(self, group: zarr.Group, url: str, final_url: str | None = None) -> None:
        """`url` is where the cache is written, `final_url` where it will be."""
        self.url, self._final_url = url, final_url or url.removesuffix(PARTIAL)
        self._group = group
        self._image_ids = group["images/image_id"][:]
        arrays = open_arrays(group, url)
        self._columns = columns_of(arrays)
        self._owners = arrays[OWNER_COLUMN.name]
        attributes = group.attrs.asdict()
        self._layers = None if "logits" in self._columns else UpperLayers.read(group, url)
        self._rows_per_block = int(attributes["rows_per_block"])
        self._checksums = BlockChecksums(
            group, {name: self._rows_per_block // column.chunk_rows for name, column in arrays.items()}
        )
        if attributes["images_per_block"] != IMAGES_PER_BLOCK:
            raise CacheError(
                f"{url}: is written in blocks of {attributes['images_per_block']} images, "
                f"this library writes blocks of {IMAGES_PER_BLOCK}; --overwrite starts anew"
            )

    @property
    def projections(self) -> list[Projection]:
        """See `RoICache.projections`."""
        return read_projections(self._group, self.url)

    def pending(self) -> list[int]:
        """Returns the blocks not written yet, ascending."""
        counts = self._group["progress"][:, 0]
        return [b for b in range(num_blocks(len(counts))) if (counts[block_slice(b)] < 0).any()]

    def write_block(self, block: int, rois: Sequence[RoIs]) -> None:
        """Stores the images of one block, in the order of the image table.

        Raises CacheError for other images, for more RoIs than a block has rows, for values that are not valid.
        """
        expected = self._image_ids[block_slice(block)].tolist()
        got = [r.image_id for r in rois]
        if got != expected:
            raise CacheError(f"{self.url}: block {block} holds images {expected}, got {got}")
        counts = np.array([len(r) for r in rois], np.int32)
        if counts.sum() > self._rows_per_block:
            raise CacheError(
                f"{self.url}: block {block} has {counts.sum()} RoIs, its capacity is {self._rows_per_block}"
            )
        images = [self._to_stored(r) for r in rois]
        with ThreadPoolExecutor(1) as pool:
            # Hashing takes as long as writing, which mostly waits for the disk.
            digests = pool.map(image_digest, [list(arrays.values()) for arrays in images])
            sums: dict[str, np.ndarray | None] = {}
            if counts.sum():
                start = block * self._rows_per_block
                owners = np.arange(len(counts), dtype=np.int32) + block * IMAGES_PER_BLOCK
                sums[OWNER_COLUMN.name] = self._owners.write(start, [np.repeat(owners, counts)])
                for field, column in self._columns.items():
                    sums[COLUMNS[field].name] = column.write(start, [arrays[field] for arrays in images])
            self._checksums.write(block, sums)
            self._group["progress"][block_slice(block)] = np.stack([counts, list(digests)], 1)

    def finish(self) -> RoICache:
        """Writes the manifest and opens the cache. Raises CacheError while blocks are pending."""
        counts, digests = self._group["progress"][:].T
        if (counts < 0).any():
            raise CacheError(f"{self.url}: {(counts < 0).sum()} of {len(counts)} images are not written yet")
        starts = np.empty(len(counts), np.int64)
        for block in range(num_blocks(len(counts))):
            inside = counts[block_slice(block)]
            starts[block_slice(block)] = block * self._rows_per_block + np.cumsum(inside) - inside
        write_array(self._group, "images/roi_start", starts, ("image",))
        write_array(self._group, "images/roi_count", counts.astype(np.int32), ("image",))
        write_array(self._group, "images/digest", digests, ("image",))
        self._checksums.finish()
        seal(self._group, self.url, self._final_url)
        return open_cache(self._final_url)

    def _to_stored(self, rois: RoIs) -> dict[str, np.ndarray]:
        """Returns one image's arrays as they are stored, by field. Raises CacheError naming the image."""
        try:
            check_values(rois)
            if self._layers is not None:
                check_derived(rois, self._layers)
            return {f: to_stored(rois, f, COLUMNS[f], column.row_shape) for f, column in self._columns.items()}
        except CacheError as error:
            raise CacheError(f"{self.url}: image {rois.image_id}: {error}") from None
