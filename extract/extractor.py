"""One extraction's images, and the RoIs of a block of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice, tee
from typing import NamedTuple

import numpy as np

from extract.cache.format import block_slice, num_blocks
from extract.config import Config
from extract.data.annotations import Annotations
from extract.data.images import batches_of_one_size, flip_boxes, read_image, unflip_rois
from extract.detectors.base import Detector, Image
from extract.image_selection import class_balanced_images
from extract.matching import GroundTruth, assign_targets, select_training_samples
from extract.rois import RoIs
from extract.utils.prefetch import prefetch

READERS = 4
"""Threads that read ahead: decoding hardly holds the interpreter's lock, and a network's files come slowly."""
BATCHES_AHEAD = 2
"""So many batches of images are read while the detector is at work on one."""


class BlockOutput(NamedTuple):
    """A block's images behind the detector: RoIs without labels, features on its device, flipped images as seen."""

    block: int
    rois: list[RoIs]


class Extraction:
    """The images to visit, in their order, and one block of them at a time."""

    def __init__(self, config: Config, annotations: Annotations, detector: Detector):
        self.config, self.annotations, self.detector = config, annotations, detector
        self.positions = np.arange(len(annotations.image_ids))
        if config.images_per_class is not None:
            self.positions = class_balanced_images(annotations, config.images_per_class, config.seed)
        if not len(self.positions):
            raise ValueError(f"{annotations.path}: no image has an annotation, so no class can be given images")
        self.blocks = num_blocks(len(self.positions))
        self.masks = config.masks if config.masks is not None else config.split == "val" and detector.has_masks
        flip = config.flip if config.flip is not None else 0.5 * (config.split == "train")
        self.flipped = np.array([self._rng(p, 0).random() < flip for p in self.positions], bool)

    @property
    def capacity(self) -> int:
        """Upper bound of the RoIs kept of one image."""
        objects = np.diff(self.annotations.offsets)[self.positions].max(initial=0)
        return self.config.proposals + (int(objects) if self.config.split == "train" else 0)

    def forwards(self, blocks: Iterable[int], check: Callable[[], None] = lambda: None) -> Iterator[BlockOutput]:
        """The forward pass over each block's images, while the images of what follows are being read.

        `check` is called after each batch, to raise what went wrong elsewhere.
        """
        todo, upcoming = tee((block, batch) for block in blocks for batch in self._batches(block))
        done: dict[int, RoIs] = {}
        every = (image for _, batch in upcoming for image in batch)
        depth = BATCHES_AHEAD * self.config.batch_size
        with closing(prefetch(self._load, every, threads=READERS, depth=depth)) as images:
            for block, batch in todo:
                pixels = list(islice(images, len(batch)))
                done.update(zip(batch, self._forward(batch, pixels), strict=True))
                check()
                if len(done) == len(self.images(block)):
                    whole, done = BlockOutput(block, [done[i] for i in self.images(block)]), {}
                    yield whole

    def finish(self, forwarded: BlockOutput) -> list[RoIs]:
        """A block's RoIs in the computer's memory, labelled, in the coordinates of the unflipped images."""
        return [self._finish(*one) for one in zip(self.images(forwarded.block), forwarded.rois, strict=True)]

    def block(self, block: int) -> list[RoIs]:
        """`finish` of the `forwards` of one block."""
        (forwarded,) = self.forwards([block])
        return self.finish(forwarded)

    def images(self, block: int) -> range:
        """Those of a block, as indices of `positions`."""
        return range(len(self.positions))[block_slice(block)]

    def _batches(self, block: int) -> Iterator[list[int]]:
        a, images = self.annotations, self.images(block)
        positions = self.positions[images]
        sizes = list(zip(a.heights[positions].tolist(), a.widths[positions].tolist(), strict=True))
        for batch in batches_of_one_size(sizes, self.config.batch_size):
            yield [images[i] for i in batch]

    def _forward(self, batch: list[int], images: list[Image]) -> Iterator[RoIs]:
        """Of each image of a batch the RoIs as the detector gives them, but features in half precision."""
        truths = [self._truth(i) for i in batch]
        forward = self.detector.forward(
            images, self.config.level, lambda i, proposals: self._choose(batch[i], truths[i], proposals)
        )
        painted = forward.masks() if self.masks else [None] * len(images)
        for rois, masks in zip(forward.rois, painted, strict=True):
            yield replace(rois, features=None if rois.features is None else rois.features.half(), masks=masks)

    def _finish(self, index: int, rois: RoIs) -> RoIs:
        features = None if rois.features is None else rois.features.cpu().numpy()
        labelled = assign_targets(replace(rois, features=features), self._truth(index), self.detector.stages)
        return unflip_rois(labelled) if self.flipped[index] else labelled

    def _load(self, index: int) -> Image:
        position = self.positions[index]
        size = (int(self.annotations.heights[position]), int(self.annotations.widths[position]))
        pixels = read_image(self.config.images, self.annotations.file_names[position], size)
        image_id = int(self.annotations.image_ids[position])
        return Image(image_id, pixels[:, ::-1] if self.flipped[index] else pixels)

    def _truth(self, index: int) -> GroundTruth:
        position = self.positions[index]
        a, of = self.annotations, self.annotations.image_slice(position)
        boxes = a.boxes[of]
        if self.flipped[index]:
            boxes = flip_boxes(boxes, int(a.widths[position]))
        return GroundTruth(boxes, a.labels[of], a.ids[of], a.crowd[of], bool(a.exhaustive[position]))

    def _choose(self, index: int, truth: GroundTruth, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        proposals = proposals[: self.config.proposals]
        if self.config.split == "val":
            return np.arange(len(proposals)), np.empty((0, 4), np.float32)
        rng = self._rng(self.positions[index], 1)
        keep = select_training_samples(proposals, truth, self.detector.stages[0], self.config.background, rng)
        return keep, truth.boxes[~truth.crowd]

    def _rng(self, position: int, purpose: int) -> np.random.Generator:
        """One generator per image and purpose, so that an image's draws depend on no other image."""
        return np.random.default_rng([self.config.seed, int(self.annotations.image_ids[position]), purpose])
