"""Whether two descriptions are of one detector, with one input size, normalisation and options.

Descriptions are those of `Detector.description`, in caches, heads and live detectors. Where one of the two lacks a
value, as those of older versions do, that value is not compared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from extract.utils.errors import shortened

logger = logging.getLogger(__name__)

REFUSED = {"pixel_mean": "pixel mean", "pixel_std": "pixel std", "channel_order": "channel order"}
"""Settings that make other features of the same pixels. Nobody means them to differ."""
PRECISION = "precision"
"""Setting of a detector that runs in half precision, "bf16" or "fp16". Where it is absent, the precision is fp32."""
WARNED = {"input_size": "input size (shorter, longer edge)", "options": "options", PRECISION: "precision"}
"""Settings that may differ on purpose, as in multi-scale testing."""
MAX_VALUE_LENGTH = 160


def describe_settings(
    size: Sequence[int], mean: Sequence[float], std: Sequence[float], channel_order: str
) -> dict[str, Any]:
    """Returns the `settings` of a detector's description, JSON values.

    Args:
        size: (shorter, longer) edge in pixels that images are resized to.
        mean, std: per channel, in `channel_order` and the framework's own unit (0 to 1 or 0 to 255).
        channel_order: "RGB" or "BGR".
    """
    mean, std = ([round(float(value), 4) for value in values] for values in (mean, std))
    return {"input_size": list(size), "pixel_mean": mean, "pixel_std": std, "channel_order": channel_order}


def with_settings(description: Mapping[str, Any], **settings: object) -> dict[str, Any]:
    """Returns the description with some settings replaced or added."""
    return {**description, "settings": {**description.get("settings", {}), **settings}}


def precision_of(description: Mapping[str, Any]) -> str:
    """Returns the precision of a detector or a cache from its description."""
    return str((description.get("settings") or {}).get(PRECISION, "fp32"))


def check_same_detector(source: str, found: Mapping[str, Any], owner: str, expected: Mapping[str, Any]) -> None:
    """Raises ValueError naming field and both values unless both descriptions are of the same detector.

    Detectors are the same if their tensors are. Where one of the two lacks `tensors_sha256`, names and the files'
    sha256 decide. A different normalisation is refused; a different input size, other options or an otherwise
    different config are logged as a warning.

    Args:
        source: path or name of what `found` describes; messages begin with it.
        found: one description.
        owner: phrase before the expected value, such as "the head was trained for".
        expected: the other description.
    """
    if found.get("tensors_sha256") and expected.get("tensors_sha256"):
        _refuse("tensors", source, found["tensors_sha256"], owner, expected["tensors_sha256"])
    else:
        _refuse("name", source, found.get("name", ""), owner, expected.get("name", ""))
        _refuse("weights", source, found.get("weights_sha256", ""), owner, expected.get("weights_sha256", ""))
    own, other = ({PRECISION: "fp32", **one["settings"]} if one.get("settings") else {} for one in (found, expected))
    for key, name in REFUSED.items():
        if key in own and key in other:
            _refuse(name, source, own[key], owner, other[key])
    differ = [key for key in WARNED if key in own and key in other and own[key] != other[key]]
    for key in differ:
        values = shortened(own[key], MAX_VALUE_LENGTH), owner, shortened(other[key], MAX_VALUE_LENGTH)
        logger.warning("%s: %s of the detector %s, %s %s", source, WARNED[key], *values)
    configs = [description.get("config_sha256", "") for description in (found, expected)]
    if all(configs) and configs[0] != configs[1] and not differ:
        logger.warning("%s: config of the detector (sha256) %s, %s %s", source, configs[0], owner, configs[1])


def _refuse(field: str, source: str, found: object, owner: str, expected: object) -> None:
    if found != expected:
        values = [shortened(value, MAX_VALUE_LENGTH) or "unknown" for value in (found, expected)]
        raise ValueError(f"{source}: detector {field} {values[0]}, {owner} {values[1]}")
