"""Head type "auto" on hidden features: whether the first layer is frozen or corrected in low rank.

A frozen first layer suits a well trained detector, where the correction would only learn rare classes by heart; a
poorly trained one gains from the correction. Each candidate is trained for some hundred steps without a tenth of the
training images, and the one of the lower loss on these images is trained in full. The loss is that of training itself:
cross-entropy on class-balanced samples. No other images are used.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from calib.checkpoint import read_choice
from calib.config import Config, HeadType
from calib.features import Features
from calib.head_types import build_head
from calib.loader import batches
from calib.losses import adapt_head, build_loss
from calib.metrics import Record, Tally
from calib.sampler import BiLevelSampler
from calib.train_state import TrainState
from calib.train_step import add_losses, train_step
from extract.holdout import HELD_OUT_SHARE, spare_last_images
from extract.utils.distributed import is_main_process
from extract.utils.progress import FIRST_LINE, progress_bar

if TYPE_CHECKING:
    from extract import RoICache

logger = logging.getLogger(__name__)

CANDIDATES: tuple[HeadType, ...] = ("3fc_ft", "3fc_lowrank")
STEPS = 300
"""Training steps of each candidate."""
HELD_OUT_STEPS = 50
"""Samples that the loss is computed on."""
ROIS_PER_CLASS = 4
"""`Config.rois_per_class` of head type auto on hidden features."""


@dataclass(frozen=True)
class Choice:
    """The head type that was chosen, and by which figures.

    Attributes:
        head_type: the candidate of the lowest loss.
        held_out: per candidate its loss and its accuracies on foreground and background RoIs of held-out images; empty
            if no image could be held out.
    """

    head_type: HeadType
    held_out: dict[str, dict[str, float]]

    def describe(self, images: int) -> str:
        """Returns one line."""
        figures = "; ".join(
            f"{name} loss {values['loss']:.4f}, foreground accuracy {values['fg_accuracy']:.1%}"
            for name, values in self.held_out.items()
        )
        return f"head type {self.head_type} is chosen on {images} held-out training images: {figures}"


def resolve_auto(config: Config, cache: RoICache) -> Config:
    """Returns the configuration without "auto" where the feature level decides.

    Pooled features train the paper's `3fc_ft`, or `3fc_rand` where the cache lacks the detector's layers; embeddings
    `linear`; hidden features without directions, or with layers to freeze, `3fc_ft`. Otherwise the type is still to be
    chosen.
    """
    if config.head_type != "auto":
        return config
    if cache.level == "hidden":
        rois_per_class = config.rois_per_class or ROIS_PER_CLASS
        chosen = cache.projections and not config.freeze_layers
        return replace(config, head_type="auto" if chosen else "3fc_ft", rois_per_class=rois_per_class)
    if cache.level == "embedding":
        return replace(config, head_type="linear")
    return replace(config, head_type="3fc_ft" if cache.fc_layers() else "3fc_rand")


def stored_choice(out: Path) -> Choice | None:
    """Returns the choice in the checkpoint of a folder, which a resumed run keeps; None if there is none."""
    stored = read_choice(out) if out.name else {}
    return msgspec.convert(stored, Choice) if stored else None


def choose_head_type(cache: RoICache, config: Config, features: Features) -> Choice:
    """Trains the candidates without held-out images and returns the better one; logs the figures.

    Where each image is the only one of a class, none can be held out, and the first layer is frozen.
    Under torchrun all processes call it, and all return the same.
    """
    held_out = held_out_images(cache, config.seed)
    if not _has_foreground(cache, held_out):
        logger.info("head type %s is taken: no training image can be held out to choose by", CANDIDATES[0])
        return Choice(CANDIDATES[0], {})
    options = config.classes_per_step, config.images_per_class, config.seed, config.rois_per_class
    short = replace(config, out="", steps=min(STEPS, config.steps))
    samplers = [
        BiLevelSampler(cache, *options, images, config.sampling, short.steps) for images in (~held_out, held_out)
    ]
    records: dict[str, dict[str, float]] = {}
    for head_type in CANDIDATES:
        record = _held_out_record(cache, replace(short, head_type=head_type), features, *samplers)
        records[head_type] = {name: getattr(record, name) for name in ("loss", "fg_accuracy", "bg_accuracy")}
    best = min(CANDIDATES, key=lambda head_type: records[head_type]["loss"])
    choice = Choice(best, records)
    logger.info("%s", choice.describe(int(held_out.sum())))
    return choice


def held_out_images(cache: RoICache, seed: int) -> np.ndarray:
    """Returns (N,) bool: a draw of images, without those of classes that would have no other image left."""
    labels = cache.read("labels")[:, 0]
    images = np.repeat(np.arange(len(cache.offsets) - 1), np.diff(cache.offsets))
    is_foreground = (labels >= 0) & (labels < cache.num_classes)
    pairs = np.unique(np.stack([labels[is_foreground], images[is_foreground]]), axis=1)
    held_out = np.random.default_rng((seed, len(CANDIDATES))).random(len(cache.offsets) - 1) < HELD_OUT_SHARE
    return spare_last_images(held_out, *pairs)


def _has_foreground(cache: RoICache, images: np.ndarray) -> bool:
    """Returns whether every stage has foreground RoIs in some of the images (N,) bool."""
    labels = cache.read("labels")[np.repeat(images, np.diff(cache.offsets))]
    return bool(((labels >= 0) & (labels < cache.num_classes)).any(axis=0).all())


def _held_out_record(
    cache: RoICache, config: Config, features: Features, training: BiLevelSampler, held_out: BiLevelSampler
) -> Record:
    """Trains one candidate; returns its loss and accuracies on the samples of held-out images."""
    loss = build_loss(config.loss, cache.classes, config.seed)
    head = adapt_head(build_head(cache, config.head_type, config.hidden, config.seed, {}), loss)
    device = features.device
    state = TrainState.load_or_init(head.to(device), loss.to(device), config, device)
    stages, tally = len(cache.stages), Tally(features.device)
    with closing(batches(training, features, stages, range(config.steps))) as loader:
        name, shown = f"try {config.head_type}", is_main_process()
        for batch in progress_bar(loader, total=config.steps, desc=name, unit="step", shown=shown, delay=FIRST_LINE):
            train_step(state, batch, config, tally)
    tally = Tally(features.device)
    with torch.no_grad(), closing(batches(held_out, features, stages, range(HELD_OUT_STEPS))) as loader:
        for batch in loader:
            add_losses(state, batch, config, tally)
    return tally.take(config.steps, config.lr)
