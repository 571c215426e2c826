"""Masks after detection: a detector paints each pair of a box and a class once, into a store beside the cache.

With one mask per class, a cache would hold a thousand masks of each RoI, of which few are ever detected. So detections
come first, from the cache; then the detector runs once more over the images and predicts the masks of the boxes and
classes that were kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import tee
from pathlib import Path
from typing import NamedTuple

import numpy as np

from extract.cache.mask_store import BoxClassPairs, MaskStore
from extract.cache.reader import RoICache
from extract.data.annotations import Annotations, read_annotations
from extract.data.class_map import ClassMap
from extract.data.image_files import find_image
from extract.data.images import SizedReader, flip_boxes
from extract.detectors.base import Detector, ForwardOutput, Image, ImageDetections, reader_of, select_no_proposals
from extract.detectors.class_map import map_detector
from extract.detectors.identity import check_same_detector, precision_of
from extract.utils.distributed import Coordinator, is_main_process
from extract.utils.prefetch import available_cpus, prefetch
from extract.utils.progress import progress_bar
from fuse.detections import positions_by_image
from fuse.ops.masks import encode_bitmaps

MASKS_AT_ONCE = 64
"""Masks that the detector predicts at a time: at the image's size, and in torchvision as floats, they are large."""
READERS, IMAGES_AHEAD = 4, 8
"""Threads that read images, and images that they read ahead."""
MAX_ENCODERS = 4
"""Threads that encode masks. Each holds `MASKS_AT_ONCE` masks."""
SAME_BOX, SAME_SHARE = 2.0, 0.5
"""The detector is the cache's if it proposes at least this share of the cache's boxes, each to within these pixels."""


class PaintedBlock(NamedTuple):
    """Pairs of the images of one block, and the counts of their masks in compressed COCO RLE."""

    block: int
    pairs: BoxClassPairs
    counts: list[str]


class _Job(NamedTuple):
    """The pairs to paint in one image: `positions` among those of its block, whose counts `painted` collects."""

    painted: PaintedBlock
    positions: np.ndarray

    @property
    def image_id(self) -> int:
        return int(self.painted.pairs.image_ids[self.positions[0]])


class _Chunk(NamedTuple):
    """P masks of one image, (P, H, W) bool, and the indices of the pairs of a block that have each mask."""

    painted: PaintedBlock
    owners: list[np.ndarray]
    masks: np.ndarray


class MaskPainter:
    """A detector that paints masks in the images of a cache."""

    def __init__(
        self, detector: Detector, cache: RoICache, annotations: Annotations, folder: Path, allow_outside: bool = False
    ) -> None:
        """
        Args:
            detector: the one that made the cache.
            cache: a val cache.
            annotations: of the cache's images, for the names of their files.
            folder: of the images.
            allow_outside: see `find_image`.

        Raises ValueError if the annotations lack an image of the cache.
        """
        self._detector, self._cache, self._folder, self._allow_outside = detector, cache, folder, allow_outside
        self._read = SizedReader(reader_of(detector))
        self._class_agnostic = bool(detector.description.get("class_agnostic_masks"))
        class_map = ClassMap.from_description(cache.detector)
        self._has_class = class_map.has_output if class_map else np.ones(cache.num_classes, bool)
        self._category_ids = cache.classes["category_id"].to_numpy(np.int64)
        self._images = cache.images.set_index("image_id")
        self._names = dict(zip(annotations.image_ids.tolist(), annotations.file_names, strict=True))
        missing = set(self._images.index) - self._names.keys()
        if missing:
            raise ValueError(
                f"{annotations.path}: lacks {len(missing)} images of {cache.url}, image {min(missing)} first"
            )

    def check(self) -> None:
        """Runs the detector on one image of the cache.

        Raises FileNotFoundError or ValueError if the image cannot be read, if the detector predicts no masks, or if it
        does not propose the boxes in the cache, as with other weights, another input size or other images.
        """
        rois = self._cache.image_at(int(np.argmax(self._cache.images["roi_count"])), ())
        output = self._detector.forward([self._load(rois.image_id)], "logits")
        if self._predict(output, np.empty((0, 4), np.float32), np.empty(0, np.int64)) is None:
            raise ValueError(f"detector {self._detector.description['name']} predicts no masks; use --masks none")
        found = output.rois[0].proposals[:, 0]
        found = flip_boxes(found, rois.width) if rois.flipped else found
        distance = np.abs(rois.proposals[:, :1] - found).max(2).min(1, initial=np.inf)
        share = (distance < SAME_BOX).mean() if len(rois) else 1.0
        if share < SAME_SHARE:
            raise ValueError(
                f"{self._cache.url}: image {rois.image_id}: the detector proposes {share:.0%} of the boxes in the "
                "cache, expected almost all: its weights, its options or the images are not those of the cache"
            )

    def paint(self, blocks: Iterable[tuple[int, BoxClassPairs]]) -> Iterator[PaintedBlock]:
        """Yields each block with its masks; threads read images ahead and encode masks.

        Args:
            blocks: of `MaskStore.by_block`; consumed a few images ahead.

        Raises FileNotFoundError or ValueError naming an image that cannot be read.
        """
        jobs, upcoming = tee(job for block in blocks for job in _jobs(*block))
        encoders = min(available_cpus(), MAX_ENCODERS)
        with (
            closing(
                prefetch(self._load, (j.image_id for j in upcoming), threads=READERS, depth=IMAGES_AHEAD)
            ) as images,
            closing(prefetch(_encode, self._chunks(jobs, images), threads=encoders, depth=encoders)) as encoded,
        ):
            for painted, owners, counts in encoded:
                for indices, text in zip(owners, counts, strict=True):
                    for i in indices.tolist():
                        painted.counts[i] = text
                if all(painted.counts):
                    yield painted

    def _chunks(self, jobs: Iterator[_Job], images: Iterator[Image]) -> Iterator[_Chunk]:
        """Yields the masks of some pairs of one image, after another."""
        for job, image in zip(jobs, images, strict=False):
            output = self._detector.forward([image], "logits", select_no_proposals)
            flipped = self._flipped(job.image_id)
            owners = [job.positions[index] for index in self._sharing(job.painted.pairs.take(job.positions))]
            for first in range(0, len(owners), MASKS_AT_ONCE):
                chunk = owners[first : first + MASKS_AT_ONCE]  # of few boxes, which is all that mask heads compute
                pairs = job.painted.pairs.take(np.array([indices[0] for indices in chunk]))
                boxes = flip_boxes(pairs.boxes, image.pixels.shape[1]) if flipped else pairs.boxes
                masks = self._predict(output, boxes, self._labels(pairs))
                assert masks is not None, "check() refuses a detector without masks"
                yield _Chunk(job.painted, chunk, masks[:, :, ::-1] if flipped else masks)

    def _sharing(self, pairs: BoxClassPairs) -> list[np.ndarray]:
        """Returns the indices of the pairs that have each mask in common, equal boxes one after another."""
        if not self._class_agnostic:
            return list(np.lexsort(pairs.boxes.T)[:, None])
        known = self._has_class[self._labels(pairs)]
        _, masks = np.unique(np.column_stack([pairs.boxes, known]), axis=0, return_inverse=True)
        return positions_by_image(masks.ravel())

    def _labels(self, pairs: BoxClassPairs) -> np.ndarray:
        """Returns the contiguous classes (P,) of pairs."""
        return np.searchsorted(self._category_ids, pairs.category_ids)

    def _predict(self, output: ForwardOutput, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Returns the framework's masks (P, H, W) bool of boxes (P, 4) and classes (P,), None without a mask head.

        Masks of classes that the detector does not have, which only an oracle detects, are empty.
        """
        known = np.flatnonzero(self._has_class[labels])
        numbers = known.astype(np.float32)  # as scores, because detectron2 leaves out boxes without area
        (result,) = output.to_framework([ImageDetections(boxes[known], labels[known].astype(np.int64), numbers)])
        found, masks = self._detector.to_arrays(result)
        if masks is None or len(masks) == len(labels):
            return masks
        every = np.zeros((len(labels), *masks.shape[1:]), bool)
        # Mask scoring changes scores, and leaves out none.
        every[known if len(masks) == len(known) else found.scores.astype(np.int64)] = masks
        return every

    def _load(self, image_id: int) -> Image:
        """Reads an image, flipped if it is in the cache."""
        height, width = self._images.loc[image_id, ["height", "width"]].astype(int)
        pixels = self._read(find_image(self._folder, self._names[image_id], self._allow_outside), (height, width))
        return Image(image_id, pixels[:, ::-1] if self._flipped(image_id) else pixels)

    def _flipped(self, image_id: int) -> bool:
        return bool(self._images.at[image_id, "flipped"])


def load_painter(
    detector: Detector,
    cache: RoICache,
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    allow_outside: bool = False,
) -> MaskPainter:
    """Returns the painter of a cache's masks; call its `check` before painting.

    Args:
        detector: as `load_detector` returns it, its classes in its own order.
        cache: a val cache that this detector made.
        annotations: file of the cache's images.
        images: folder of the images.
        allow_outside: see `extract.data.image_files.find_image`.

    Raises ValueError for another detector than the cache's or another precision, and what the annotation reader and
    `MaskPainter` raise.
    """
    check_same_detector(cache.url, cache.detector, f"in detector {detector.description['name']}", detector.description)
    precision = precision_of(cache.detector)
    if precision_of(detector.description) != precision:
        raise ValueError(
            f"{cache.url}: precision of its detector is {precision}: load the detector in it to paint masks"
        )
    detector = map_detector(detector, ClassMap.from_description(cache.detector))
    return MaskPainter(detector, cache, read_annotations(Path(annotations)), Path(images), allow_outside)


def paint_pairs(store: MaskStore, pairs: BoxClassPairs, painter: MaskPainter, coordinator: Coordinator) -> None:
    """Paints pairs and adds their masks to the store, block by block.

    All processes that torchrun starts call it with the same pairs, and share the blocks. Rank 0 shows the progress.
    """
    images = len(np.unique(pairs.image_ids))
    progress = progress_bar(total=images, desc="paint masks", unit="image", shown=is_main_process())
    with store.writing(), progress as bar:
        for painted in painter.paint(coordinator.work_queue(list(store.by_block(pairs)))):
            store.write(*painted)
            finished = coordinator.add_finished(len(np.unique(painted.pairs.image_ids)))
            bar.update(finished - bar.n)
    coordinator.barrier()
    store.refresh()


def _jobs(block: int, pairs: BoxClassPairs) -> Iterator[_Job]:
    """Yields the work of each image of a block."""
    painted = PaintedBlock(block, pairs, [""] * len(pairs.image_ids))
    return (_Job(painted, index) for index in positions_by_image(pairs.image_ids))


def _encode(chunk: _Chunk) -> tuple[PaintedBlock, list[np.ndarray], list[str]]:
    """Replaces the masks of a chunk by their counts."""
    return chunk.painted, chunk.owners, [rle["counts"] for rle in encode_bitmaps(chunk.masks)]
