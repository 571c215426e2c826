"""Masks painted after detection, kept beside the cache that they belong to; `docs/format.md` is the specification.

A store only grows: a part holds the masks that were painted of one block of images at one time, and is never changed.
So processes need no coordination but `writing`, and an interrupted run keeps all parts but those it was painting.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from extract.cache.format import IMAGES_PER_BLOCK, CacheError
from extract.cache.reader import RoICache
from extract.utils.files import write_bytes
from extract.utils.locks import shared_folder

SUFFIX = ".safetensors"
FINGERPRINT_CHARS = 16
"""Characters of a cache's fingerprint that name its folder of masks."""
TENSORS = {"image_id": "int64", "category_id": "int64", "box": "float32", "length": "int64", "counts": "uint8"}
"""Tensor of a part → its dtype."""

MasksByPair = dict[bytes, dict]
"""The masks of one image: key of a pair (`BoxClassPairs.keys`) → compressed COCO RLE."""


class BoxClassPairs(NamedTuple):
    """P pairs of a box and a class, each in its image; a mask depends on nothing else.

    Attributes:
        image_ids: (P,) int64.
        category_ids: (P,) int64, ids of the annotation file.
        boxes: (P, 4) float32 xyxy in pixels of the image.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray

    def take(self, index: np.ndarray) -> BoxClassPairs:
        """Returns the pairs at `index`, integers or a bool mask."""
        return BoxClassPairs(*(column[index] for column in self))

    def keys(self) -> list[bytes]:
        """Returns each pair's class and box as bytes, which are equal for equal pairs of one image."""
        packed = np.empty(len(self.image_ids), [("category_id", "<i8"), ("box", "<f4", 4)])
        packed["category_id"], packed["box"] = self.category_ids, self.boxes
        return packed.view(f"V{packed.dtype.itemsize}").tolist()


class MaskStore:
    """The masks painted for one cache.

    Attributes:
        url: folder beside the cache: `val.masks` for `val.zarr`. Every cache, told by its fingerprint, has a folder
            of its own in it.
    """

    def __init__(self, cache: RoICache, url: str | None = None) -> None:
        """Opens the store of a cache, which may not exist yet, beside it or at `url`."""
        self.url = url or f"{cache.url.rstrip('/').removesuffix('.zarr')}.masks"
        self._folder = f"{self.url}/{cache.fingerprint[:FINGERPRINT_CHARS]}"
        self._files = _Files(self._folder)
        ids = cache.images["image_id"].tolist()
        self._sizes = dict(zip(ids, cache.images[["height", "width"]].to_numpy(np.int64).tolist(), strict=True))
        self._positions = {image_id: i for i, image_id in enumerate(ids)}
        self._parts: dict[int, list[str]] = {}
        self.refresh()

    def __bool__(self) -> bool:
        """Whether the store holds any masks."""
        return bool(self._parts)

    def refresh(self) -> None:
        """Finds the parts that were written since, by any process."""
        self._parts = defaultdict(list)
        for name in self._files.names():
            block, _, rest = name.partition("-")
            if block.isdigit() and rest.endswith(SUFFIX):
                self._parts[int(block)].append(name)

    def by_block(self, pairs: BoxClassPairs) -> Iterator[tuple[int, BoxClassPairs]]:
        """Yields each block that has pairs, ascending, and its pairs, images in the order of the cache.

        Raises CacheError for an image that the cache does not have.
        """
        try:
            positions = np.array([self._positions[i] for i in pairs.image_ids.tolist()], np.int64)
        except KeyError as error:
            raise CacheError(f"{self.url}: the cache has no image {error}") from None
        order = np.argsort(positions, kind="stable")
        blocks = positions[order] // IMAGES_PER_BLOCK
        for index in np.split(order, np.flatnonzero(np.diff(blocks)) + 1) if len(order) else []:
            yield int(positions[index[0]]) // IMAGES_PER_BLOCK, pairs.take(index)

    def read(self, block: int) -> dict[int, MasksByPair]:
        """Returns the masks of a block's images, by image id.

        Raises CacheError naming a part that is damaged.
        """
        masks: dict[int, MasksByPair] = defaultdict(dict)
        for name in sorted(self._parts.get(block, ())):
            pairs, counts = self._read_part(name)
            for image_id, key, text in zip(pairs.image_ids.tolist(), pairs.keys(), counts, strict=True):
                masks[image_id][key] = {"size": self._sizes[image_id], "counts": text}
        return masks

    def missing(self, pairs: BoxClassPairs) -> BoxClassPairs:
        """Returns the pairs that have no mask in the store yet, images in the order of the cache."""
        parts = []
        for block, wanted in self.by_block(pairs):
            painted = self.read(block)
            items = zip(wanted.image_ids.tolist(), wanted.keys(), strict=True)
            parts.append(wanted.take(np.array([key not in painted.get(image_id, ()) for image_id, key in items], bool)))
        return BoxClassPairs(*map(np.concatenate, zip(*parts, strict=True))) if parts else pairs

    def writing(self) -> AbstractContextManager[None]:
        """Shares the folder with other writers for a block; removes first what killed ones have left."""
        return self._files.writing()

    def write(self, block: int, pairs: BoxClassPairs, counts: Sequence[str]) -> None:
        """Adds a part: pairs of a block's images and the counts of their compressed COCO RLE."""
        text = [one.encode("ascii") for one in counts]
        tensors = dict(
            zip(TENSORS, (*pairs, np.array([len(one) for one in text]), _bytes(b"".join(text))), strict=True)
        )
        content = save({name: np.ascontiguousarray(tensors[name], dtype) for name, dtype in TENSORS.items()})
        self._files.write(f"{block:06}-{_digest(content)}{SUFFIX}", content)

    def write_request(self, pairs: BoxClassPairs) -> str:
        """Stores pairs that other processes shall paint; returns the file's name for `read_request`."""
        content = save({name: np.ascontiguousarray(column) for name, column in zip(TENSORS, pairs, strict=False)})
        name = f"request-{_digest(content)}{SUFFIX}"
        self._files.write(name, content)
        return name

    def read_request(self, name: str) -> BoxClassPairs:
        """Reads the pairs of `write_request`."""
        tensors = load(self._files.read(name))
        return BoxClassPairs(tensors["image_id"], tensors["category_id"], tensors["box"])

    def remove_request(self, name: str) -> None:
        """Deletes the file of `write_request`."""
        self._files.remove(name)

    def _read_part(self, name: str) -> tuple[BoxClassPairs, list[str]]:
        content = self._files.read(name)
        try:
            if not name.endswith(f"-{_digest(content)}{SUFFIX}"):
                raise ValueError("its content does not have the sha256 in its name")
            tensors = load(content)
            image_ids, category_ids, boxes, lengths, text = (tensors[tensor] for tensor in TENSORS)
        except (ValueError, KeyError, SafetensorError) as error:
            raise CacheError(
                f"{self._folder}/{name}: damaged: {error}; delete the file, and its masks are painted again"
            ) from None
        ends = np.cumsum(lengths)
        whole = text.tobytes().decode("ascii")
        counts = [whole[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        return BoxClassPairs(image_ids, category_ids, boxes), counts


class _Files:
    """The files of one folder, at a path or an fsspec URL."""

    def __init__(self, url: str) -> None:
        self._remote = None
        self._folder = url
        if "://" in url:
            from fsspec.core import url_to_fs

            self._remote, self._folder = url_to_fs(url)

    def names(self) -> list[str]:
        """Returns the names of the files; [] if there is no folder."""
        if self._remote is None:
            folder = Path(self._folder)
            return [path.name for path in folder.iterdir()] if folder.is_dir() else []
        self._remote.invalidate_cache()
        found = self._remote.ls(self._folder, detail=False) if self._remote.isdir(self._folder) else []
        return [path.rsplit("/", 1)[-1] for path in found]

    def read(self, name: str) -> bytes:
        """Returns a file's content."""
        path = f"{self._folder}/{name}"
        return Path(path).read_bytes() if self._remote is None else self._remote.cat_file(path)

    def writing(self) -> AbstractContextManager[None]:
        """Shares the folder with other writers for a block; object stores have nothing to share or to remove."""
        return shared_folder(self._folder) if self._remote is None else nullcontext()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; a reader sees all of it or nothing."""
        if self._remote is None:
            write_bytes(f"{self._folder}/{name}", content)
        else:
            self._remote.makedirs(self._folder, exist_ok=True)
            self._remote.pipe_file(f"{self._folder}/{name}", content)

    def remove(self, name: str) -> None:
        """Deletes a file."""
        if self._remote is None:
            Path(self._folder, name).unlink(missing_ok=True)
        else:
            self._remote.rm_file(f"{self._folder}/{name}")


def _digest(content: bytes) -> str:
    """Returns the beginning of the content's sha256, 16 hexadecimal characters."""
    return hashlib.sha256(content).hexdigest()[:16]


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)
