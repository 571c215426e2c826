"""Bi-level sampling: classes first, then images of each class, then RoIs of these images.

Source: Wang et al., "Classification Calibration for Long-tail Instance Segmentation" (2019): uniform classes, one image
per class, only the sampled class's RoIs of that image. The paper does not describe how background is sampled. As in
the authors' released code, a step has as many background RoIs as foreground ones, with IoU in [0.1, 0.5).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calib.class_sampling import class_probabilities
from calib.config import Config, Sampling
from extract.matching import BACKGROUND_IOU
from extract.utils.summarized import Summarized

if TYPE_CHECKING:
    from extract import RoICache

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """The RoIs of one training step.

    Attributes:
        rows: (n,) int64 packed rows of the cache, distinct, foreground first.
        labels: (n,) int32 labels of these rows in the cache: 0…K-1 foreground, K background.
    """

    rows: np.ndarray
    labels: np.ndarray


class BiLevelSampler(Summarized):
    """A sampler of class-balanced training steps from a RoI cache.

    A step draws `classes_per_step` classes (or all, if there are fewer) uniformly without replacement among the classes
    with foreground RoIs, and `images_per_class` images for each. It takes the image's foreground RoIs of the sampled
    class, ground-truth boxes included, and as many background RoIs, drawn from all images of the step together. An
    image drawn for two classes gives the RoIs of both.

    With `rois_per_class`, a class takes at most so many foreground RoIs of an image: ground-truth boxes first, then a
    uniform draw of the others. Most of the RoIs of a class and image are near copies of one object. The paper takes
    all.

    With another `sampling`, classes are drawn by their training instances, still without replacement within a step; see
    `calib.class_sampling`.

    The background of a stage are RoIs labelled as background in that stage whose largest IoU with a ground-truth box
    is in [0.1, m), where m is the stage's matching IoU: 0.5 for a single stage, up to 0.7 in a cascade, whose last
    stage must learn to reject a RoI of IoU 0.6.

    LVIS annotates only some classes of an image. As in the paper, RoIs without an annotated object are background
    nevertheless, although they may show an object that is not annotated. Extraction can label such RoIs as ignore (-1,
    see docs/format.md); these are never drawn.

    Step `i` is a function of the cache, the parameters and `i` alone. All stages draw the same classes and images,
    because ground-truth boxes are foreground in every stage.

    Attributes:
        missing_classes: (m,) int64, ascending: classes without foreground RoIs in some stage, where they are never
            drawn.
    """

    def __init__(
        self,
        cache: RoICache,
        classes_per_step: int = Config.classes_per_step,
        images_per_class: int = Config.images_per_class,
        seed: int = Config.seed,
        rois_per_class: int | None = Config.rois_per_class,
        images: np.ndarray | None = None,
        sampling: Sampling = Config.sampling,
        steps: int = Config.steps,
    ) -> None:
        """Reads the cache's labels and IoUs.

        `images` (N,) bool restricts the draws to a part of the cache's images; the other arguments are those of
        `calib.Config`, of which `steps` is the length of progressive sampling.

        Raises:
            ValueError: a parameter below 1, a label outside -1…K, or a stage without foreground RoIs.
        """
        limits = {"classes_per_step": classes_per_step, "images_per_class": images_per_class}
        for name, value in (limits | {"rois_per_class": rois_per_class}).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.classes_per_step = classes_per_step
        self.images_per_class = images_per_class
        self.rois_per_class = rois_per_class
        self.seed, self.sampling, self.steps_of_run = seed, sampling, steps
        self._counts = None if sampling == "class-balanced" else cache.classes["instance_count"].to_numpy()
        self.num_classes = cache.num_classes
        labels, ious = cache.read("labels"), cache.read("ious")
        if labels.size and not (labels.min() >= -1 and labels.max() <= cache.num_classes):
            raise ValueError(f"{cache.url}: labels span {labels.min()}…{labels.max()}, expected -1…{cache.num_classes}")
        if images is not None:
            labels = np.where(np.repeat(images, np.diff(cache.offsets))[:, None], labels, -1)
        is_gt = np.zeros(len(labels), bool) if rois_per_class is None else cache.read("is_gt")
        self._stages = [
            _StageIndex(labels[:, stage], ious[:, stage], is_gt, cache.offsets, cache.num_classes, matching_iou)
            for stage, matching_iou in enumerate(cache.stages)
        ]
        for stage, index in enumerate(self._stages):
            if not len(index.classes):
                raise ValueError(f"{cache.url}: no foreground RoIs in stage {stage}, nothing to sample")
        present = np.stack([np.isin(np.arange(cache.num_classes), index.classes) for index in self._stages])
        self.missing_classes = np.flatnonzero(~present.all(axis=0))
        if len(self.missing_classes) and images is None:
            _warn_missing(cache, self.missing_classes)

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        sampled, rois = self.num_classes - len(self.missing_classes), self.rois_per_class
        return [
            ("Bi-level sampler", f"{self.sampling}, seed {self.seed}"),
            ("a step", f"{self.classes_per_step} classes, {self.images_per_class} image(s) of each"),
            ("RoIs", f"{'all' if rois is None else f'at most {rois}'} of an image and class, as much background"),
            ("classes", f"{sampled:,} of {self.num_classes:,} have foreground RoIs"),
        ]

    def step(self, index: int, stage: int = 0) -> Step:
        """Returns step number `index` (from 0) of a stage."""
        rng = np.random.default_rng((self.seed, index))
        own, probabilities = self._stages[stage], None
        if self._counts is not None:
            progress = min(index / self.steps_of_run, 1)
            probabilities = class_probabilities(self._counts[own.classes], self.sampling, progress)
        return own.draw(rng, self.classes_per_step, self.images_per_class, self.rois_per_class, probabilities)

    def steps(self, start: int = 0, stage: int = 0) -> Iterator[Step]:
        """Yields steps `start`, `start + 1`, … of a stage, without end."""
        return (self.step(index, stage) for index in count(start))

    def __iter__(self) -> Iterator[Step]:
        return self.steps()


class _StageIndex:
    """An index of one stage's labels in flat arrays: class → (class, image) pairs → rows, image → background rows.

    Attributes:
        classes: (C,) classes with foreground RoIs, ascending.
    """

    def __init__(
        self,
        labels: np.ndarray,
        ious: np.ndarray,
        is_gt: np.ndarray,
        offsets: np.ndarray,
        num_classes: int,
        matching_iou: float,
    ) -> None:
        num_images = len(offsets) - 1
        image = np.repeat(np.arange(num_images), np.diff(offsets))
        self._labels, self._is_gt = labels.astype(np.int32), is_gt

        foreground = np.flatnonzero((labels >= 0) & (labels < num_classes))
        pair = labels[foreground].astype(np.int64) * num_images + image[foreground]
        order = np.argsort(pair, kind="stable")
        self._rows = foreground[order]
        pairs, self._row_start, self._row_count = _runs(pair[order])
        pair_class, self._image = np.divmod(pairs, max(num_images, 1))
        self.classes, self._pair_start, self._pair_count = _runs(pair_class)

        is_background = (labels == num_classes) & (ious >= BACKGROUND_IOU) & (ious < matching_iou)
        self._background = np.flatnonzero(is_background)
        self._background_count = np.bincount(image[self._background], minlength=num_images)
        self._background_start = np.cumsum(self._background_count) - self._background_count

    def draw(
        self,
        rng: np.random.Generator,
        classes_per_step: int,
        images_per_class: int,
        rois_per_class: int | None,
        probabilities: np.ndarray | None,
    ) -> Step:
        """Returns one step."""
        amount = min(classes_per_step, len(self.classes))
        drawn = rng.choice(len(self.classes), amount, replace=False, p=probabilities)
        pairs = _subsets(rng, self._pair_start[drawn], self._pair_count[drawn], images_per_class)
        foreground = self._rows[_ranges(self._row_start[pairs], self._row_count[pairs])]
        if rois_per_class is not None:
            foreground = self._thin(rng, foreground, self._row_count[pairs], rois_per_class)

        images = np.unique(self._image[pairs])
        pool = _ranges(self._background_start[images], self._background_count[images])
        chosen = rng.choice(pool, min(len(foreground), len(pool)), replace=False)
        rows = np.concatenate([foreground, self._background[chosen]])
        # Labels are looked up by row, so that they cannot get out of step with the rows.
        return Step(rows, self._labels[rows])

    def _thin(self, rng: np.random.Generator, rows: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
        """Returns at most `size` rows of each pair, ground truth first, then a uniform draw; pairs lie in a row."""
        pair = np.repeat(np.arange(len(counts)), counts)
        key = rng.random(len(rows)) - self._is_gt[rows]  # below 0 for ground truth
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows[np.lexsort((key, pair))[rank < size]]


def _warn_missing(cache: RoICache, missing: np.ndarray) -> None:
    names = cache.classes["name"].iloc[missing[:5]].tolist()
    logger.warning(
        "%s: %d of %d classes have no foreground RoIs and are never sampled: %s%s",
        cache.url,
        len(missing),
        cache.num_classes,
        ", ".join(map(str, names)),
        ", …" if len(missing) > 5 else "",
    )


def _runs(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns distinct values, the start of each run, and its length."""
    return np.unique(ascending, return_index=True, return_counts=True)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the concatenation of `arange(start, start + count)`."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)


def _subsets(rng: np.random.Generator, starts: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Draws a uniform subset of `size` elements (or all) of each range, by Floyd's algorithm on all ranges at once."""
    picked = np.full((len(starts), min(size, int(counts.max()))), -1)
    for column in range(picked.shape[1]):
        last = np.maximum(counts - size, 0) + column
        candidate = rng.integers(0, np.minimum(last, counts - 1) + 1)
        taken = (picked == candidate[:, None]).any(axis=1)
        picked[:, column] = np.where(last < counts, np.where(taken, last, candidate), -1)
    return (starts[:, None] + picked)[picked >= 0]
