"""Fits or trains the scorer of each setting; which methods a train cache can serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from calib.config import Config
from calib.posthoc import build_method
from calib.scoring import Scorer
from calib.train import train
from extract.cache.reader import RoICache
from extract.detectors.identity import check_same_detector
from extract.uses import trainable_head_types
from fuse.selection.grids import POSTHOC, TRAINED, Setting

_LOG = logging.getLogger(__name__)
OF_EMBEDDINGS, OF_WEIGHTS = ("ncm", "cosine-ncm"), ("tau-norm",)
"""Methods that need features, and the detector's classifier."""


def check_caches(train_cache: RoICache, others: Sequence[RoICache]) -> None:
    """Raises ValueError, naming the field, unless the caches are of one detector, class table and feature level."""
    for other in others:
        check_same_detector(train_cache.url, train_cache.detector, f"in {other.url}", other.detector)
        columns = ["category_id", "instance_count"]
        if not train_cache.classes[columns].equals(other.classes[columns]):
            raise ValueError(f"{other.url}: has other categories or training counts than {train_cache.url}")
        if train_cache.class_map != other.class_map:
            raise ValueError(f"{other.url}: has its detector's classes in another order than {train_cache.url}")
        if other.level != train_cache.level:
            raise ValueError(f"{other.url}: level {other.level!r}, {train_cache.url} has {train_cache.level!r}")


def served_methods(cache: RoICache, methods: Sequence[str]) -> list[str]:
    """Returns the methods that a train cache's feature level serves; logs which are left out."""
    has_layers = bool(cache.fc_layers())
    head_types = trainable_head_types(cache.level, has_layers, cache.num_directions)
    served = [name for name, options in TRAINED.items() if options["head_type"] in head_types]
    served += [
        name
        for name in POSTHOC
        if (name not in OF_EMBEDDINGS or "linear" in head_types) and (name not in OF_WEIGHTS or has_layers)
    ]
    left_out = [name for name in methods if name not in served]
    if left_out:
        _LOG.info("%s: level %s does not serve %s", cache.url, cache.level, ", ".join(left_out))
    return [name for name in methods if name in served]


def make_scorer(setting: Setting, cache: RoICache, heads: Path, seed: int) -> Scorer:
    """Fits a method to a train cache, or trains its head in `head_folder`, where the same command finds it again."""
    if setting.is_trained:
        out = str(head_folder(setting, heads))
        return train(cache, Config(cache=cache.url, out=out, seed=seed, **setting.options))
    return build_method(setting.method, **setting.options).fit(cache)


def head_folder(setting: Setting, heads: Path) -> Path:
    """Returns the folder of a trained setting's head."""
    return heads / f"{setting.method}-{setting.label.replace('=', '-')}"
