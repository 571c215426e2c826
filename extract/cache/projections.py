"""The projections of pooled features in a cache of level "hidden": stored, read, and checked with its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import zarr

from extract.cache.format import CacheError, Layers, Projection, naming_damage
from extract.cache.tables import read_array, write_array

ORTHONORMAL_TOLERANCE = 1e-3
"""Of the products of directions with each other."""


def write_projections(group: zarr.Group, projections: Sequence[Projection]) -> None:
    """Stores each stage's projection."""
    for stage, (directions, center) in enumerate(projections):
        name = f"detector/stage_{stage}"
        write_array(group, f"{name}/directions", directions.astype(np.float32), ("direction", "width_0"))
        write_array(group, f"{name}/center", center.astype(np.float32), ("width_0",))


def num_directions(group: zarr.Group) -> int:
    """Returns Q; 0 if the cache has no projections."""
    directions = group.get("detector/stage_0/directions")
    return 0 if directions is None else directions.shape[0]


def read_projections(group: zarr.Group, url: str) -> list[Projection]:
    """Reads each stage's projection; [] if the cache has none. Raises CacheError naming an array that is damaged."""
    stages = [f"detector/stage_{stage}" for stage in range(len(group.attrs["stages"]))]
    with naming_damage(url):
        present = [stage for stage in stages if f"{stage}/directions" in group]
        return [
            Projection(*(read_array(group, f"{stage}/{part}", url) for part in Projection._fields)) for stage in present
        ]


def describe_features(fields: Mapping[str, tuple[int, ...]], directions: int) -> str:
    """Returns the end of a line about the features of a cache, of which `fields` are stored."""
    shape = fields.get("features")
    text = f", features {shape[1:]} float16" if shape else ""
    text += f", the last {directions} along principal directions" * bool(directions)
    return text + ", from which logits are computed" * ("logits" not in fields)


def check_hidden(
    url: str, level: str, width: int, fc_layers: Sequence[Layers], projections: Sequence[Projection], stages: int
) -> None:
    """Raises CacheError unless layers and projections fit features of level "hidden"; other levels have no projections.

    Args:
        url: of the cache, for messages.
        level: feature level.
        width: H + Q, of the features of one stage.
        fc_layers: per stage the detector's fully connected layers.
        projections: per stage, or () without.
        stages: S.
    """
    if level != "hidden":
        if projections:
            raise CacheError(f"{url}: level {level!r} has no projections, level 'hidden' has")
        return
    if len(fc_layers) != stages or min(map(len, fc_layers)) < 2:
        raise CacheError(f"{url}: level 'hidden' needs fc_layers of {stages} stage(s), at least two layers each")
    if len(projections) not in (0, stages):
        raise CacheError(f"{url}: projections are of {len(projections)} stages, expected {stages}")
    for stage, layers in enumerate(fc_layers):
        outputs, inputs = layers[0][0].shape
        directions = np.empty((0, inputs), np.float32)
        if projections:
            directions = projections[stage].directions
            _check_projection(f"{url}: projections of stage {stage}", projections[stage], inputs)
        if width != outputs + len(directions):
            raise CacheError(
                f"{url}: features are {width} per RoI, stage {stage} needs {outputs} of its first fully connected "
                f"layer and {len(directions)} of its projection"
            )


def _check_projection(name: str, projection: Projection, inputs: int) -> None:
    directions, center = projection
    if directions.ndim != 2 or directions.shape[1] != inputs or center.shape != (inputs,):
        raise CacheError(
            f"{name} have shapes {directions.shape} and {center.shape}, expected (Q, {inputs}), ({inputs},)"
        )
    if not np.allclose(directions @ directions.T, np.eye(len(directions)), atol=ORTHONORMAL_TOLERANCE):
        raise CacheError(f"{name}: the directions are not orthonormal")
