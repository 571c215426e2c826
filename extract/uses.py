"""What a cache is good for: which heads it trains, which AP it gives, which command takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from extract.detectors.base import OwnThresholds
from extract.rois import POOLED_AFTER_CONVOLUTIONS

if TYPE_CHECKING:
    from extract.cache.reader import RoICache

NEW_LAYERS = ("2fc_rand", "3fc_rand")
"""Head types of `calib.train` that need nothing but pooled features."""
OWN_LAYERS = ("linear", "3fc_ft", "lws", "disalign")
"""Head types that begin with the detector's own layers, from pooled or hidden features on."""
OF_EMBEDDINGS = ("linear", "lws", "disalign")
PROJECTED = ("3fc_lowrank",)
"""Head types that correct the first layer of hidden features along their directions."""


def trainable_head_types(level: str, has_fc_layers: bool, directions: int = 0) -> tuple[str, ...]:
    """Returns the head types that features of a level train.

    Args:
        level: feature level.
        has_fc_layers: whether the detector has fully connected layers from these features to the logits.
        directions: number of directions of the projection at level hidden.
    """
    if level == "hidden":
        return (*OWN_LAYERS, *PROJECTED) if directions else OWN_LAYERS
    if level == "pooled":
        return (*NEW_LAYERS, *OWN_LAYERS) if has_fc_layers else NEW_LAYERS
    if level == "embedding":
        return OF_EMBEDDINGS if has_fc_layers else ("linear",)
    return ()


def describe_evaluation(has_masks: bool) -> str:
    """Returns a line about the AP that a val cache gives; `has_masks` as of a `Detector`."""
    if has_masks:
        return "val caches of this detector hold masks: AP of boxes and masks"
    return "val caches of this detector hold no masks: AP of boxes, and of masks if fuse paints them with the detector"


def describe_thresholds(own: OwnThresholds) -> str:
    """Returns a line about the options of `python -m fuse` that select detections as the framework itself does."""
    options = f"--score-threshold {own.score_threshold:g}"
    options += f" --max-detections {own.max_detections}" if own.max_detections is not None else ""
    return f"the framework's own inference is that of fuse with {options}; fuse keeps scores above 0 by default"


def describe_heads(level: str, has_fc_layers: bool, detector: Mapping[str, Any], directions: int = 0) -> str:
    """Returns a line about the heads that a cache of a feature level trains, and what another level would.

    Arguments are those of `trainable_head_types`, and the detector's description.
    """
    if level == "logits":
        return "feature level logits trains no head and serves methods without training; embedding trains linear heads"
    types = " ".join(trainable_head_types(level, has_fc_layers, directions))
    if level == "hidden":
        return f"feature level hidden trains --head-type {types}; pooled trains new layers as well"
    if level == "embedding":
        return f"feature level embedding trains --head-type {types}; pooled trains the other head types"
    if not has_fc_layers:
        reason = "the box head has other layers than fully connected ones behind these features"
        return f"feature level pooled trains --head-type {types} only: {reason}; embedding trains linear"
    where = " behind the box head's convolutions" * bool(detector.get(POOLED_AFTER_CONVOLUTIONS))
    return f"feature level pooled{where} trains --head-type {types}"


def next_command(split: str, level: str, url: str, annotations: str = "val.json") -> str:
    """Returns the command that takes a cache that has been written; … stands for what only the user knows."""
    if split == "holdout":
        return f"python -m fuse select --holdout {url} --cache val.zarr --train train.zarr …"
    if split != "train":
        return f"python -m fuse --cache {url} --head head --annotations {annotations} --out runs/cat"
    if level == "logits":
        return f"python -m fuse --cache val.zarr --method logn --fit-cache {url} --annotations val.json --out runs/logn"
    return f"python -m calib.train --cache {url} --out head"


def command_for(cache: RoICache, annotations: str = "val.json") -> str:
    """Returns `next_command` for a cache."""
    split = cache.provenance.get("config", {}).get("split", cache.split)
    return next_command(split, cache.level, cache.url, annotations)
