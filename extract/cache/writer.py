"""Writing RoI caches.

A cache is written in blocks of consecutive images. A block owns a fixed range of rows in every array, so blocks
can be written in any order, by any number of processes, and again after an interruption, without coordination:
the bytes are the same. A block is done once its entry in `progress` is written, the cache once its manifest is,
which comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from extract.cache.format import (
    CHUNK_BYTES,
    COLUMNS,
    FILL,
    FORMAT,
    IMAGE_COLUMNS,
    IMAGES_PER_BLOCK,
    LEVELS,
    MAX_CHUNK_ROWS,
    SHARD_BYTES,
    VERSION,
    CacheError,
    Column,
    Header,
    Layers,
    block_slice,
    check_values,
    image_digest,
    num_blocks,
    open_group,
    row_bytes,
    stored,
)
from extract.cache.location import may_be_replaced, remove_cache
from extract.cache.shard_io import ShardedArray
from extract.data.classes import check_classes
from extract.rois import RoIs

if TYPE_CHECKING:
    import pandas as pd

    from extract.cache.reader import RoICache


def write_cache(
    url: str,
    rois: Sequence[RoIs],
    classes: pd.DataFrame,
    *,
    split: str,
    level: str,
    stages: Sequence[float] = (0.5,),
    fc_layers: Sequence[Layers] = (),
    detector: Mapping[str, object] | None = None,
    provenance: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> RoICache:
    """Writes a cache of RoIs that were made elsewhere.

    Args:
        url: path or fsspec URL of the cache.
        rois: one `RoIs` an image; gone through twice, so a sequence that loads each image when asked will do.
        classes: DataFrame with category_id, name, frequency, image_count, instance_count, ascending by id.
        split: "train" (to train heads on) or "val" (to detect and evaluate on, without ground-truth boxes).
        level: what `features` hold: "pooled" (R, S, C, P, P), "embedding" (R, S, C) or "logits" (None).
        stages: matching IoU per stage.
        fc_layers: per stage the detector's own fully connected layers, (weight (out, in), bias (out,)), background last.
        detector: what there is to say of the detector; `stage_average` is "scores" (default) or "logits".
        overwrite: replace a cache that is there.

    Raises CacheError naming the image and the field for shapes that differ and values that are not finite.
    """
    import pandas as pd

    url = str(url)
    if len(rois) == 0:
        raise CacheError(f"{url}: no images to write")
    images = pd.DataFrame(
        [(r.image_id, r.height, r.width, r.flipped, len(r)) for r in rois], columns=list(IMAGE_COLUMNS)
    )
    header = Header(split, level, tuple(stages), dict(detector or {}), dict(provenance or {}))
    capacity = max(int(images["roi_count"].max()), 1)
    table = images.drop(columns="roi_count")
    writer = create_cache(url, rois[0], header, classes, table, capacity, fc_layers, overwrite)
    try:
        for block in writer.pending():
            writer.write_block(block, [rois[i] for i in range(len(rois))[block_slice(block)]])
        return writer.finish()
    except BaseException:
        # Unlike an extraction this cannot be resumed, so nothing half-written stays.
        remove_cache(url)
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
) -> CacheWriter:
    """Makes an empty cache, ready for its blocks.

    Args:
        url: a path or an fsspec URL; nothing may be there, or a cache if `overwrite`.
        template: any image's RoIs; only the shapes behind R matter.
        header: split, level, stages and origin.
        classes: the class table, see `extract.data.classes`.
        images: image_id, height, width, flipped, in the order in which they will be stored.
        capacity: upper bound of the RoIs of one image.
        fc_layers: the detector's own fully connected layers, per stage.

    Raises CacheError if something is at `url`, and for a class table, stages or a level that the RoIs do not fit.
    """
    classes = check_classes(classes, url)
    if template.num_classes != len(classes):
        raise CacheError(f"{url}: logits are of {template.num_classes} classes, the class table has {len(classes)}")
    if template.logits.shape[1] != len(header.stages):
        raise CacheError(f"{url}: RoIs have {template.logits.shape[1]} stages, the header {len(header.stages)}")
    if images["image_id"].duplicated().any():
        raise CacheError(f"{url}: image id {images['image_id'][images['image_id'].duplicated()].iloc[0]} repeats")
    axes = None if template.features is None else template.features.ndim
    if axes != LEVELS[header.level]:
        raise CacheError(f"{url}: level {header.level!r} needs features of {LEVELS[header.level]} axes, got {axes}")
    replace = may_be_replaced(url, overwrite)
    # The mark lets an interrupted beginning be told from a folder of somebody's.
    group = zarr.create_group(url, overwrite=replace, attributes={"creating": True})
    rows_per_block, shard_rows = _rows(template, capacity * min(IMAGES_PER_BLOCK, max(len(images), 1)))
    _create_columns(group, template, num_blocks(len(images)) * rows_per_block, shard_rows)
    _create_tables(group, classes, images)
    for stage, layers in enumerate(fc_layers):
        for depth, (weight, bias) in enumerate(layers):
            _array(
                group,
                f"detector/stage_{stage}/weight_{depth}",
                weight.astype(np.float32),
                ("output", "input"),
            )
            _array(group, f"detector/stage_{stage}/bias_{depth}", bias.astype(np.float32), ("output",))
    sizes = {"rows_per_block": rows_per_block, "images_per_block": IMAGES_PER_BLOCK}
    group.attrs.put({"format": FORMAT, "version": VERSION, "complete": False, **sizes, **asdict(header)})
    return CacheWriter(group, url)


def resume_cache(url: str) -> CacheWriter:
    """The writer of an unfinished cache. Raises FileNotFoundError or CacheError where there is none."""
    group = open_group(url, "r+")
    if group.attrs["complete"]:
        raise CacheError(f"{url}: is finished already")
    return CacheWriter(group, url)


class CacheWriter:
    """Writes a cache block by block; made by `create_cache` and `resume_cache`."""

    def __init__(self, group: zarr.Group, url: str):
        self.url = url
        self.attributes = group.attrs.asdict()
        self._group = group
        self._image_ids = group["images/image_id"][:]
        # Looked up once: Zarr reads an array's metadata whenever it is asked for it.
        self._columns = {f: c for f, c in COLUMNS.items() if c.name in group}
        self._arrays = {name: group[name] for name in ["image", *(c.name for c in self._columns.values())]}
        self._direct = {name: ShardedArray.from_zarr(array, url) for name, array in self._arrays.items()}
        if self.attributes["images_per_block"] != IMAGES_PER_BLOCK:
            raise CacheError(
                f"{url}: is written in blocks of {self.attributes['images_per_block']} images, "
                f"this library writes blocks of {IMAGES_PER_BLOCK}; --overwrite starts anew"
            )

    def pending(self) -> list[int]:
        """The blocks not written yet, ascending."""
        counts = self._group["progress"][:, 0]
        return [b for b in range(num_blocks(len(counts))) if (counts[block_slice(b)] < 0).any()]

    def write_block(self, block: int, rois: Sequence[RoIs]) -> None:
        """Stores the images of one block, in the order in which the cache lists them.

        Raises CacheError for other images, for more RoIs than a block has rows, for NaN and infinite values.
        """
        expected = self._image_ids[block_slice(block)].tolist()
        got = [r.image_id for r in rois]
        if got != expected:
            raise CacheError(f"{self.url}: block {block} holds images {expected}, got {got}")
        counts = np.array([len(r) for r in rois], np.int32)
        capacity = self.attributes["rows_per_block"]
        if counts.sum() > capacity:
            raise CacheError(f"{self.url}: block {block} has {counts.sum()} RoIs, its capacity is {capacity}")
        packed = [self._stored(r) for r in rois]
        with ThreadPoolExecutor(1) as pool:
            # Half of the work; the other half waits for the disk.
            digests = pool.map(image_digest, [list(arrays.values()) for arrays in packed])
            if counts.sum():
                owners = np.arange(len(counts), dtype=np.int32) + block * IMAGES_PER_BLOCK
                self._write("image", block * capacity, [np.repeat(owners, counts)])
                for name in packed[0]:
                    self._write(name, block * capacity, [arrays[name] for arrays in packed])
            self._group["progress"][block_slice(block)] = np.stack([counts, list(digests)], 1)

    def _write(self, name: str, start: int, parts: Sequence[np.ndarray]) -> None:
        """Stores rows one after the other, from a row on that is the first of a shard."""
        if self._direct[name]:
            self._direct[name].write(start, parts)
        else:
            self._arrays[name][start : start + sum(map(len, parts))] = np.concatenate(parts)

    def _stored(self, rois: RoIs) -> dict[str, np.ndarray]:
        """One image's arrays as they are stored; refuses what is not valid."""
        try:
            check_values(rois)
            return {c.name: stored(rois, f, c, self._arrays[c.name].shape[1:]) for f, c in self._columns.items()}
        except CacheError as error:
            raise CacheError(f"{self.url}: image {rois.image_id}: {error}") from None

    def finish(self) -> RoICache:
        """Writes the manifest and opens the cache. Raises CacheError while blocks are pending."""
        from extract.cache.reader import open_cache

        counts, digests = self._group["progress"][:].T
        if (counts < 0).any():
            raise CacheError(f"{self.url}: {(counts < 0).sum()} of {len(counts)} images are not written yet")
        starts = np.empty(len(counts), np.int64)
        for block in range(num_blocks(len(counts))):
            inside = counts[block_slice(block)]
            starts[block_slice(block)] = block * self.attributes["rows_per_block"] + np.cumsum(inside) - inside
        _array(self._group, "images/roi_start", starts, ("image",))
        _array(self._group, "images/roi_count", counts.astype(np.int32), ("image",))
        _array(self._group, "images/digest", digests, ("image",))
        self._group.attrs["complete"] = True
        return open_cache(self.url)


def _rows(template: RoIs, block_capacity: int) -> tuple[int, int]:
    """Rows per block and per shard: powers of two, so that chunks divide shards and shards divide blocks."""
    shard_rows = _power_of_two(SHARD_BYTES // row_bytes(template))
    shard_rows = min(shard_rows, 2 * _power_of_two(max(block_capacity - 1, 1)))
    return -(-block_capacity // shard_rows) * shard_rows, shard_rows


def _power_of_two(limit: int) -> int:
    """The largest power of two up to `limit`, at least 1."""
    return 1 << max(limit.bit_length() - 1, 0)


def _create_columns(group: zarr.Group, template: RoIs, rows: int, shard_rows: int) -> None:
    shapes = {c.name: (c, a.shape[1:]) for f, c in COLUMNS.items() if (a := getattr(template, f)) is not None}
    shapes["image"] = (Column("image", "int32"), ())
    for name, (column, shape) in shapes.items():
        width = max(int(np.prod(shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize, 1)
        chunk_rows = min(_power_of_two(CHUNK_BYTES // width), MAX_CHUNK_ROWS, shard_rows)
        inner = [BytesCodec(), ZstdCodec(level=1)] if column.compressed else [BytesCodec()]
        axes = column.axes if name != "box" else column.axes[-len(shape) :]
        group.create_array(
            name,
            shape=(rows, *shape),
            dtype=column.dtype,
            chunks=(shard_rows, *shape),
            # Codecs are spelled out, since the checksum belongs on every inner chunk, not on the shard.
            serializer=ShardingCodec(chunk_shape=(chunk_rows, *shape), codecs=[*inner, Crc32cCodec()]),
            compressors=None,
            # One file a shard, not a folder of folders.
            chunk_key_encoding={"name": "default", "separator": "."},
            fill_value=FILL[np.dtype(column.dtype).kind],
            dimension_names=("roi", *axes[: len(shape)]),
        )


def _create_tables(group: zarr.Group, classes: pd.DataFrame, images: pd.DataFrame) -> None:
    for name in ("category_id", "image_count", "instance_count"):
        _array(group, f"classes/{name}", classes[name].to_numpy(np.int64), ("class",))
    # Zarr v3 has no specified string type yet, so text lives in attributes.
    group["classes"].attrs.update({"name": classes["name"].tolist(), "frequency": "".join(classes["frequency"])})
    for name, dtype in {"image_id": np.int64, "height": np.int32, "width": np.int32, "flipped": bool}.items():
        _array(group, f"images/{name}", images[name].to_numpy(dtype), ("image",))
    group.create_array(
        "progress",
        shape=(len(images), 2),
        dtype=np.int64,
        chunks=(IMAGES_PER_BLOCK, 2),
        fill_value=-1,
        dimension_names=("image", "count_and_digest"),
    )


def _array(group: zarr.Group, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    """A small array in one checksummed chunk."""
    group.create_array(
        name,
        data=values,
        chunks=tuple(max(n, 1) for n in values.shape),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=axes,
        overwrite=True,
        config={"write_empty_chunks": True},  # so that a chunk that is missing is a chunk lost
    )
