"""Logits that a cache of feature level "hidden" leaves out: the detector's upper layers give them from its features.

They would be half of such a cache. What is computed differs from the detector's own logits by the rounding of features
to half floats, as the stored logits of other levels differ by their own rounding. Letters in shapes: `R` RoIs, `S`
stages, `K` classes, `H` outputs of the first fully connected layer, `Q` directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from extract.cache.format import CacheError, Header, Layers, layers_above, naming_damage
from extract.cache.tables import read_class_map, read_fc_layers
from extract.data.class_map import ClassMap
from extract.rois import RoIs

LOGIT_TOLERANCE = 2e-2
"""Largest rounding error of logits of fp16 features, relative to an image's largest logit."""
CHECKED_ROIS = 8
"""RoIs of each image whose logits are compared before they are left out; layers that differ, differ everywhere."""
ROWS_AT_ONCE = 4096


class UpperLayers:
    """The detector's layers from hidden features to logits, of each stage.

    Attributes:
        num_classes: K.
        columns: of the logits (…, K+1), those that the layers give; see `classifier_columns`.
    """

    def __init__(self, stages: Sequence[Layers], class_map: ClassMap | None = None) -> None:
        """`stages` are the layers behind the first, the classifier last."""
        self._stages = stages
        self.num_classes = len(stages[0][-1][1]) - 1
        self.columns = classifier_columns(class_map, self.num_classes)

    @classmethod
    def read(cls, group: zarr.Group, url: str) -> UpperLayers:
        """Reads those of a cache of level "hidden". Raises CacheError if they are damaged."""
        stages = [read_fc_layers(group, stage, url, first=1) for stage in range(len(group.attrs["stages"]))]
        with naming_damage(url):
            return cls(stages, read_class_map(group.attrs["detector"], len(stages[0][-1][1]) - 1, url))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits (R, S, K+1) float32 of hidden features (R, S, H+Q).

        For LVIS detectors that is 4.6 MFLOP per RoI and stage, as much as scoring it with a head on the same features.
        """
        import torch  # here, so that opening a cache does not import torch

        logits = np.empty((len(features), len(self._stages), self.num_classes + 1), np.float32)
        for stage, layers in enumerate(self._stages):
            tensors = [(torch.from_numpy(weight), torch.from_numpy(bias)) for weight, bias in layers]
            hidden = tensors[0][0].shape[1]
            for begin in range(0, len(features), ROWS_AT_ONCE):
                rows = slice(begin, begin + ROWS_AT_ONCE)
                x = torch.from_numpy(features[rows, stage, :hidden]).float()
                for weight, bias in tensors[:-1]:
                    x = torch.addmm(bias, x.relu(), weight.T)
                weight, bias = tensors[-1]
                torch.addmm(bias, x.relu(), weight.T, out=torch.from_numpy(logits[rows, stage]))
        return logits


class DerivedRoIs(RoIs):
    """RoIs of a cache without logits: `logits` (R, S, K+1) float32 are computed when they are first read.

    A copy by `dataclasses.replace` has them computed.
    """

    _layers: UpperLayers
    _read_features: Callable[[], np.ndarray]

    @classmethod
    def make(cls, layers: UpperLayers, read_features: Callable[[], np.ndarray], **fields: Any) -> DerivedRoIs:
        """Makes the RoIs of one image.

        Args:
            layers: of the detector.
            read_features: returns the features; called if `features` is None when logits are read.
            fields: those of `RoIs` except `logits`.
        """
        rois = cls.__new__(cls)
        vars(rois).update(fields, _layers=layers, _read_features=read_features)
        return rois

    @cached_property
    def logits(self) -> np.ndarray:
        """(R, S, K+1) float32; see `UpperLayers.logits`."""
        return self.logits_of(slice(None))

    def logits_of(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns the logits of some of the RoIs."""
        if "logits" in vars(self):
            return self.logits[rows]
        features = self._read_features() if self.features is None else np.asarray(self.features)
        return self._layers.logits(features[rows])

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return super().num_classes if "logits" in vars(self) else self._layers.num_classes


def why_stored(rois: RoIs, header: Header, fc_layers: Sequence[Layers]) -> str | None:
    """Returns why a cache stores logits; None if it leaves them out, because they follow from its features.

    Args:
        rois: of one image, of which features and logits are compared.
        header: of the cache.
        fc_layers: the detector's fully connected layers, per stage.
    """
    if header.level != "hidden":
        return f"feature level {header.level} stores them"
    class_map = ClassMap.from_description(header.detector)
    softmax = header.detector.get("activation", "softmax") == "softmax"
    if class_map and len(class_map.surplus) and softmax:
        return "outputs of the detector that are no class are part of background, whose logit its layers do not give"
    layers = UpperLayers([layers_above("hidden", stage) for stage in fc_layers], class_map)
    if layers.num_classes != rois.num_classes:
        return f"the detector's layers give {layers.num_classes} classes, the class table has {rois.num_classes}"
    error = _logit_error(rois, layers)
    return None if error <= LOGIT_TOLERANCE else f"those of the features differ by {error:.1e} of the largest"


def check_derived(rois: RoIs, layers: UpperLayers) -> None:
    """Raises CacheError if an image's logits, which are not to be stored, do not follow from its features."""
    error = _logit_error(rois, layers)
    if not error <= LOGIT_TOLERANCE:
        raise CacheError(
            f"logits differ from those that the detector's layers give from the features by {error:.1e} of the "
            f"largest, expected {LOGIT_TOLERANCE:.0e} at most"
        )


def _logit_error(rois: RoIs, layers: UpperLayers) -> float:
    """Returns the largest difference of logits from those of the features as stored, relative to the largest logit.

    Of `CHECKED_ROIS` RoIs, evenly spaced.
    """
    import torch

    rows = np.unique(np.linspace(0, len(rois) - 1, CHECKED_ROIS).astype(int)) if len(rois) else np.empty(0, int)
    own = rois.logits_of(rows) if isinstance(rois, DerivedRoIs) else rois.logits[rows]
    features = torch.as_tensor(rois.features)[torch.from_numpy(rows)].half().cpu().numpy()
    return relative_error(own[..., layers.columns], layers.logits(features)[..., layers.columns])


def relative_error(expected: np.ndarray, values: np.ndarray) -> float:
    """Returns the largest difference between arrays of one shape, relative to the largest of `expected`; 0 if empty."""
    if not expected.size:
        return 0.0
    expected = expected.astype(np.float32)
    return float(np.abs(values - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def classifier_columns(class_map: ClassMap | None, num_classes: int) -> np.ndarray:
    """Returns the columns of the logits (…, K+1) that are outputs of the classifier's rows, ascending.

    Others are those of classes that the detector lacks, and background if outputs that are no class are part of it.
    """
    if class_map is None:
        return np.arange(num_classes + 1)
    background = [] if len(class_map.surplus) else [num_classes]
    return np.append(np.flatnonzero(class_map.has_output), background).astype(np.int64)
