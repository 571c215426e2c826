"""The images of one extraction, and the RoIs of a block of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice, tee
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from extract.cache.format import Layers, Projection, block_slice, num_blocks
from extract.config import Config
from extract.data.annotations import Annotations
from extract.data.class_map import ClassMap
from extract.data.image_files import find_image
from extract.data.images import SizedReader, batches_of_one_size, flip_boxes, unflip_rois
from extract.detectors.base import Detector, Image, reader_of
from extract.hidden import forward_at_level
from extract.holdout import held_out_images
from extract.image_selection import class_balanced_images
from extract.matching import GroundTruth, assign_targets, select_training_samples
from extract.rois import RoIs
from extract.utils.prefetch import prefetch

if TYPE_CHECKING:
    from torch import Tensor

READERS = 4
"""Threads that read images: decoding releases the interpreter's lock, and network file systems are slow."""
BATCHES_AHEAD = 2
"""Batches of images that are read while the detector processes one."""
FLIP_STREAM, SAMPLE_STREAM = 0, 1
"""Random streams of an image: whether it is flipped, which background RoIs are sampled."""


class BlockOutput(NamedTuple):
    """The detector's output for one block of images.

    Attributes:
        block: number of the block.
        rois: of each image, not labelled yet; features are on the detector's device, flipped images not flipped back.
    """

    block: int
    rois: list[RoIs]


class Extractor:
    """A detector and the images that it runs over, in blocks of a cache.

    Attributes:
        positions: (N,) int64, positions in `annotations` of the images to visit, in the order of the cache.
        flipped: (N,) bool, whether an image is flipped.
        num_blocks: number of blocks.
        fc_layers: the detector's fully connected layers that belong to features of this level, per stage.
        projections: per stage, of feature level "hidden", before the first forward pass; [] for none.
        with_masks: whether masks are kept.
        batch_size: images per forward pass.
    """

    def __init__(self, config: Config, annotations: Annotations, detector: Detector) -> None:
        """Raises ValueError if there is no image to visit, or the detector has no features of the level."""
        assert config.images is not None, "resolve_files sets it"
        self.config, self.annotations, self.detector = config, annotations, detector
        self.batch_size = config.batch_size
        self._folder, self._read = config.images, SizedReader(reader_of(detector))
        class_map = ClassMap.from_description(detector.description)
        # The detector never finds these classes, so that their RoIs are neither foreground nor background.
        self._lacking = class_map.missing if class_map else np.empty(0, np.int64)
        unusable = np.isin(annotations.labels, self._lacking)
        counted = replace(annotations, crowd=annotations.crowd | unusable)  # of which no class needs images
        self.positions = _positions(config, counted)
        if not len(self.positions):
            raise ValueError(f"{annotations.path}: no image has an annotation, so no class can be given images")
        self.num_blocks = num_blocks(len(self.positions))
        self.with_masks = config.masks if config.masks is not None else config.split != "train" and detector.has_masks
        probability = config.flip if config.flip is not None else 0.5 * (config.split == "train")
        draws = [self._rng(i, FLIP_STREAM).random() for i in range(len(self.positions))]
        self.flipped = np.array(draws) < probability
        self.fc_layers: list[Layers] = detector.fc_layers("pooled" if config.level == "hidden" else config.level)
        self.projections: Sequence[Projection] = []
        self._forward_detector = forward_at_level(detector, config.level)

    def set_projections(self, projections: Sequence[Projection]) -> None:
        """Sets each stage's projection of feature level "hidden"."""
        self.projections = projections
        self._forward_detector = forward_at_level(self.detector, self.config.level, projections)

    def pooled_sample(self, indices: np.ndarray) -> Extractor:
        """Returns an extractor of pooled features for some of the images, indices of `positions`, without masks."""
        other = copy.copy(self)
        other.positions, other.flipped = self.positions[indices], self.flipped[indices]
        other.num_blocks, other.with_masks = num_blocks(len(indices)), False
        other._forward_detector = forward_at_level(self.detector, "pooled")
        return other

    @property
    def max_rois_per_image(self) -> int:
        """Upper bound of the RoIs kept of one image."""
        objects = np.diff(self.annotations.offsets)[self.positions].max(initial=0)
        return self.config.proposals + (int(objects) if self.config.split == "train" else 0)

    def block_images(self, block: int) -> range:
        """Returns the images of a block, as indices of `positions`."""
        return range(len(self.positions))[block_slice(block)]

    def check_inference(self, block: int) -> None:
        """Raises ValueError unless the detector finds in a block's first image what its framework's inference finds."""
        from extract.detectors.agreement import check_inference  # imports torch, as all adapters do

        check_inference(self.detector, self._load_uncounted(self.block_images(block)[0]))

    def sample(self, index: int) -> RoIs:
        """Returns the RoIs of the forward pass of one image, an index of `positions`."""
        (rois,) = self._forward([index], [self._load_uncounted(index)])
        return rois

    def forward_blocks(
        self, blocks: Iterable[int], raise_if_failed: Callable[[], None] = lambda: None
    ) -> Generator[BlockOutput, None, None]:
        """Yields the detector's output for each block; threads read the images of later batches meanwhile.

        Args:
            blocks: consumed a few batches ahead.
            raise_if_failed: called after each batch, to raise errors of other threads.
        """
        batches, upcoming = tee((block, batch) for block in blocks for batch in self._batches(block))
        upcoming_images = (image for _, batch in upcoming for image in batch)
        depth = BATCHES_AHEAD * self.batch_size
        rois: dict[int, RoIs] = {}
        with closing(prefetch(self._load, upcoming_images, threads=READERS, depth=depth)) as images:
            for block, batch in batches:
                rois.update(zip(batch, self._forward(batch, list(islice(images, len(batch)))), strict=True))
                raise_if_failed()
                if len(rois) == len(self.block_images(block)):
                    output, rois = BlockOutput(block, [rois[i] for i in self.block_images(block)]), {}
                    yield output

    def finish_block(self, output: BlockOutput) -> list[RoIs]:
        """Returns a block's RoIs for the cache: labelled, on the CPU, in coordinates of the unflipped images."""
        return [self._finish(*item) for item in zip(self.block_images(output.block), output.rois, strict=True)]

    def extract_block(self, block: int) -> list[RoIs]:
        """Returns `finish_block` of one block's `forward_blocks`."""
        (output,) = self.forward_blocks([block])
        return self.finish_block(output)

    def log_turned(self) -> None:
        """Logs how many of the images that this process has read were turned by their EXIF orientation, if any were."""
        self._read.log_turned()

    def _batches(self, block: int) -> Iterator[list[int]]:
        """Yields a block's images in batches of one size."""
        images = self.block_images(block)
        positions = self.positions[images]
        heights, widths = self.annotations.heights[positions], self.annotations.widths[positions]
        sizes = list(zip(heights.tolist(), widths.tolist(), strict=True))
        for batch in batches_of_one_size(sizes, self.batch_size):
            yield [images[i] for i in batch]

    def _load(self, index: int) -> Image:
        """Reads an image, flipped if it is to be."""
        position = self.positions[index]
        size = (int(self.annotations.heights[position]), int(self.annotations.widths[position]))
        pixels = self._read(
            find_image(self._folder, self.annotations.file_names[position], self.config.allow_outside), size
        )
        image_id = int(self.annotations.image_ids[position])
        return Image(image_id, pixels[:, ::-1] if self.flipped[index] else pixels)

    def _load_uncounted(self, index: int) -> Image:
        """Reads an image as `_load` does, without counting it as read."""
        other = copy.copy(self)
        other._read = SizedReader(reader_of(self.detector))
        return other._load(index)

    def _forward(self, batch: list[int], images: list[Image]) -> Iterator[RoIs]:
        """Yields each image's RoIs from one forward pass, features in half precision."""
        gt = [self._ground_truth(i) for i in batch]
        output = self._forward_detector(images, lambda i, proposals: self._select_proposals(batch[i], gt[i], proposals))
        masks = output.masks() if self.with_masks else [None] * len(images)
        for rois, image_masks in zip(output.rois, masks, strict=True):
            features = cast("Tensor | None", rois.features)
            yield replace(rois, features=None if features is None else features.half(), masks=image_masks)

    def _select_proposals(self, index: int, gt: GroundTruth, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `extract.detectors.base.SelectProposals`."""
        proposals = proposals[: self.config.proposals]
        if self.config.split != "train":
            return np.arange(len(proposals)), np.empty((0, 4), np.float32)
        rng = self._rng(index, SAMPLE_STREAM)
        limits = self.config.background, rng, self.config.rois_per_class
        keep = select_training_samples(proposals, gt, self.detector.stages[0], *limits)
        return keep, gt.boxes[~gt.crowd]

    def _finish(self, index: int, rois: RoIs) -> RoIs:
        """Returns an image's RoIs as `finish_block` does."""
        features = cast("Tensor | None", rois.features)
        on_cpu = replace(rois, features=None if features is None else features.cpu().numpy())
        labelled = assign_targets(on_cpu, self._ground_truth(index), self.detector.stages)
        if len(self._lacking):
            labels = np.where(np.isin(labelled.labels, self._lacking), np.int32(-1), labelled.labels)
            labelled = replace(labelled, labels=labels)
        return unflip_rois(labelled) if self.flipped[index] else labelled

    def _ground_truth(self, index: int) -> GroundTruth:
        """Returns an image's ground truth, flipped if the image is."""
        position, a = self.positions[index], self.annotations
        own = a.image_slice(position)
        boxes = flip_boxes(a.boxes[own], int(a.widths[position])) if self.flipped[index] else a.boxes[own]
        return GroundTruth(boxes, a.labels[own], a.ids[own], a.crowd[own], bool(a.exhaustive[position]))

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        """Returns a generator for one image and purpose, so that no image's random numbers depend on other images."""
        image_id = int(self.annotations.image_ids[self.positions[index]])
        return np.random.default_rng([self.config.seed, image_id, stream])


def _positions(config: Config, annotations: Annotations) -> np.ndarray:
    """Returns (N,) int64, ascending: the positions of the images to visit."""
    among = held_out_images(annotations) if config.split == "holdout" else None
    if config.min_images_per_class is not None:
        return class_balanced_images(annotations, config.min_images_per_class, config.seed, among)
    return np.arange(len(annotations.image_ids)) if among is None else np.flatnonzero(among)
