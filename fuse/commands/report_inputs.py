"""What the commands add to their results for the report: the images, and the weights of the two classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from calib.heads import Head, linear_layers
from calib.scoring import Scorer
from extract.cache.reader import RoICache
from extract.data.annotations import read_annotations
from extract.data.image_files import find_image
from extract.data.images import SizedReader
from fuse.config import EvaluationConfig
from fuse.report.inputs import ReadImage


def image_reader(
    config: EvaluationConfig, folder: Path | None, image_ids: Iterable[int], allow_outside: bool = False
) -> ReadImage | None:
    """Returns what reads the images that the report shows; None without a folder. `allow_outside` as of `find_image`.

    Raises FileNotFoundError for an image that is not in the folder, before anything heavy begins.
    """
    if folder is None:
        return None
    annotations = read_annotations(config.annotations)
    position = {image_id: i for i, image_id in enumerate(annotations.image_ids.tolist())}
    paths = {i: find_image(folder, annotations.file_names[position[i]], allow_outside) for i in map(int, image_ids)}
    read = SizedReader()

    def read_image(image_id: int) -> np.ndarray:
        i = position[image_id]
        size = int(annotations.heights[i]), int(annotations.widths[i])
        return read(paths[image_id], size if all(size) else None)

    return read_image


def weight_norms(cache: RoICache, calibrated: Scorer | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the norms (K,) of the weights of the original and the calibrated classifier, the means over stages.

    None where one of them is not known, or not a linear layer of a row per class.
    """
    if not isinstance(calibrated, Head):
        return None
    stages = range(len(cache.stages))
    layers = [cache.fc_layers(stage) for stage in stages]
    if not all(layers):
        return None
    original = [layer[-1] for layer in layers]
    if cache.class_map is not None:
        original = [cache.class_map.map_rows(*layer) for layer in original]
    weights = [weight for weight, _ in original]
    own = [
        linear_layers(stage)[-1].weight.detach().cpu().numpy() for stage in calibrated.stages if linear_layers(stage)
    ]
    rows = cache.num_classes + 1
    if {len(weight) for weight in (*weights, *own)} != {rows}:
        return None
    norms = [np.mean([np.linalg.norm(one[:-1], axis=1) for one in group], axis=0) for group in (weights, own)]
    return norms[0], norms[1]
