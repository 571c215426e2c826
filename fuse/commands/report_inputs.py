"""What the commands add to their results for the report: the weights of the two classifiers."""

from __future__ import annotations

import numpy as np

from calib.heads import Head, linear_layers
from calib.scoring import Scorer
from extract.cache.reader import RoICache


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
